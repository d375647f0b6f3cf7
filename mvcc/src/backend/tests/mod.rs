//! Torture of the engines that keep files: kill -9, power cuts, damage.
//!
//! The rule is the same everywhere: what was acknowledged as durable is there, the content is exactly that of the applied
//! index which the database names, and damage is an error. `KVD_TORTURE_ROUNDS` sets the number of kill rounds per engine and
//! multiplies the rest.

mod damage;
mod failure;
mod kill;
mod power_cut;
mod traced_power_cut;
mod workload;

/// Rounds asked for, or `default`.
fn rounds(default: u64) -> u64 {
    std::env::var("KVD_TORTURE_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}

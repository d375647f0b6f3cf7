//! Feature gates: switches for behaviour that is not yet, or no longer, the rule.
//!
//! `AllAlpha` and `AllBeta` set a whole stage; a gate named explicitly wins over them, wherever it stands in the list.
//! Source: etcd 3.7 server/features.

use std::fmt;
use std::str::FromStr;

use super::value::parse_bool;

/// How settled a feature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// On unless refused.
    Beta,
}

impl Stage {
    /// The stage as `etcd_server_feature_enabled` labels it.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

/// A feature gate of etcd 3.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// The gRPC health service answers NOT_SERVING while a defragmentation runs.
    StopGrpcServiceOnDefrag,
    /// Write transactions run their read-only checks on the shared buffer.
    TxnModeWriteWithSharedBuffer,
    /// Hashes are compared with the peers before this member serves.
    InitialCorruptCheck,
    /// The leader compares compaction hashes periodically.
    CompactHashCheck,
    /// The leader replicates remaining lease times.
    LeaseCheckpoint,
    /// Replicated lease times are stored; needs [`Gate::LeaseCheckpoint`].
    LeaseCheckpointPersist,
    /// Peers are dialled from the first advertised peer address that is not loopback.
    SetMemberLocalAddr,
    /// A keep-alive on the leader does not wait for the applied index.
    FastLeaseKeepAlive,
    /// Lease revokes pass the limit of the apply backlog.
    PriorityRequest,
}

impl Gate {
    /// Every gate, in the order of etcd's documentation.
    pub const ALL: [Gate; 9] = [
        Gate::StopGrpcServiceOnDefrag,
        Gate::TxnModeWriteWithSharedBuffer,
        Gate::InitialCorruptCheck,
        Gate::CompactHashCheck,
        Gate::LeaseCheckpoint,
        Gate::LeaseCheckpointPersist,
        Gate::SetMemberLocalAddr,
        Gate::FastLeaseKeepAlive,
        Gate::PriorityRequest,
    ];

    /// The gate's name in `--feature-gates`.
    pub fn name(self) -> &'static str {
        match self {
            Gate::StopGrpcServiceOnDefrag => "StopGRPCServiceOnDefrag",
            Gate::TxnModeWriteWithSharedBuffer => "TxnModeWriteWithSharedBuffer",
            Gate::InitialCorruptCheck => "InitialCorruptCheck",
            Gate::CompactHashCheck => "CompactHashCheck",
            Gate::LeaseCheckpoint => "LeaseCheckpoint",
            Gate::LeaseCheckpointPersist => "LeaseCheckpointPersist",
            Gate::SetMemberLocalAddr => "SetMemberLocalAddr",
            Gate::FastLeaseKeepAlive => "FastLeaseKeepAlive",
            Gate::PriorityRequest => "PriorityRequest",
        }
    }

    /// Whether it is on unless refused: beta gates are, and the comparison of compaction hashes, which costs nothing here.
    fn is_on_by_default(self) -> bool {
        self.stage() == Stage::Beta || self == Gate::CompactHashCheck
    }

    /// The gate's stage in etcd 3.7. Alpha gates are off by default, beta gates on.
    pub fn stage(self) -> Stage {
        match self {
            Gate::TxnModeWriteWithSharedBuffer | Gate::FastLeaseKeepAlive => Stage::Beta,
            _ => Stage::Alpha,
        }
    }
}

/// Which gates are on.
#[derive(Clone, PartialEq, Eq)]
pub struct FeatureGates {
    enabled: [bool; Gate::ALL.len()],
    all_alpha: bool,
    all_beta: bool,
}

impl FeatureGates {
    /// Whether `gate` is on.
    pub fn enabled(&self, gate: Gate) -> bool {
        self.enabled[gate as usize]
    }

    /// Every switch as `etcd_server_feature_enabled` shows it: name, stage, and whether it is on. `AllAlpha` and
    /// `AllBeta` are among them, on only if they were given so.
    pub fn switches(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> + '_ {
        let stages = [
            ("AllAlpha", Stage::Alpha, self.all_alpha),
            ("AllBeta", Stage::Beta, self.all_beta),
        ];
        let gates = Gate::ALL
            .into_iter()
            .map(|gate| (gate.name(), gate.stage(), self.enabled(gate)));
        stages.into_iter().chain(gates)
    }
}

impl Default for FeatureGates {
    fn default() -> Self {
        FeatureGates {
            enabled: Gate::ALL.map(Gate::is_on_by_default),
            all_alpha: false,
            all_beta: false,
        }
    }
}

impl fmt::Debug for FeatureGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(Gate::ALL.map(|gate| (gate.name(), self.enabled(gate))))
            .finish()
    }
}

impl FromStr for FeatureGates {
    type Err = String;

    fn from_str(text: &str) -> Result<FeatureGates, String> {
        let mut gates = FeatureGates::default();
        let mut explicit = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let Some((name, value)) = part.split_once('=') else {
                return Err(format!(
                    "{part:?} has no value; write {part}=true or {part}=false"
                ));
            };
            let (name, value) = (name.trim(), value.trim());
            let value =
                parse_bool(value).map_err(|why| format!("gate {name}: {value:?}: {why}"))?;
            let stage = match name {
                "AllAlpha" => {
                    gates.all_alpha = value;
                    Stage::Alpha
                }
                "AllBeta" => {
                    gates.all_beta = value;
                    Stage::Beta
                }
                _ => {
                    let Some(gate) = Gate::ALL.into_iter().find(|gate| gate.name() == name) else {
                        let known = Gate::ALL.map(Gate::name).join(", ");
                        return Err(format!(
                            "unknown feature gate {name}; known: AllAlpha, AllBeta, {known}"
                        ));
                    };
                    explicit.push((gate, value));
                    continue;
                }
            };
            for gate in Gate::ALL.into_iter().filter(|gate| gate.stage() == stage) {
                gates.enabled[gate as usize] = value;
            }
        }
        for (gate, value) in explicit {
            gates.enabled[gate as usize] = value;
        }
        Ok(gates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_gates_are_off_and_beta_gates_on_by_default() {
        let gates = FeatureGates::default();
        for gate in Gate::ALL {
            assert_eq!(
                gates.enabled(gate),
                gate.stage() == Stage::Beta || gate == Gate::CompactHashCheck,
                "{}",
                gate.name()
            );
        }
    }

    #[test]
    fn explicit_gates_win_over_stages_in_any_order() {
        for text in [
            "AllAlpha=true,LeaseCheckpoint=false",
            "LeaseCheckpoint=false, AllAlpha=true",
        ] {
            let gates: FeatureGates = text.parse().unwrap();
            assert!(gates.enabled(Gate::InitialCorruptCheck), "{text}");
            assert!(!gates.enabled(Gate::LeaseCheckpoint), "{text}");
        }
    }

    #[test]
    fn switches_show_stages_beside_gates() {
        let gates: FeatureGates = "AllBeta=true,FastLeaseKeepAlive=false".parse().unwrap();
        let switches: Vec<_> = gates.switches().collect();
        assert_eq!(switches.len(), Gate::ALL.len() + 2);
        assert!(switches.contains(&("AllAlpha", Stage::Alpha, false)));
        assert!(switches.contains(&("AllBeta", Stage::Beta, true)));
        assert!(switches.contains(&("FastLeaseKeepAlive", Stage::Beta, false)));
    }

    #[test]
    fn unknown_gates_and_missing_values_are_refused() {
        let error = "Nope=true".parse::<FeatureGates>().unwrap_err();
        assert!(error.contains("unknown feature gate Nope"), "{error}");
        let error = "LeaseCheckpoint".parse::<FeatureGates>().unwrap_err();
        assert!(error.contains("LeaseCheckpoint=true"), "{error}");
        assert!("LeaseCheckpoint=maybe".parse::<FeatureGates>().is_err());
    }
}

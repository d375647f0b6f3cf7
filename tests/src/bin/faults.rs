//! Fault runs: `faults [run] [--minutes N] [--rounds N] [--seed N] [--faults a,b] [--namespaces] [--keep FOLDER] [--keep-all]`,
//! `faults failover|move-leader [--rounds N]`, `faults check FILE...` for histories that a run kept.
//!
//! `KVD_BIN` names the member. A run prints one line a round and a table; the exit code is 1 if anything was wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kv_tests::faults::{self, Crowd, Kind, Options, measure};
use kv_tests::history;
use kv_tests::linearizability::{self, Limits, Verdict};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.first().map(String::as_str) {
        Some(word) if !word.starts_with("--") => (word, &args[1..]),
        _ => ("run", &args[..]),
    };
    let outcome = match command {
        "run" => run(rest).await,
        "failover" | "move-leader" => measure(command, rest).await,
        "check" => check(rest),
        _ => Err(anyhow::anyhow!(
            "{command} is not run, failover, move-leader or check"
        )),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &[String]) -> Result<bool> {
    let mut options = Options {
        seed: 1,
        time: Duration::from_secs(5 * 60),
        rounds_max: u64::MAX,
        kinds: Kind::ALL.to_vec(),
        in_namespaces: false,
        crowd: Crowd::default(),
        fault_max: Duration::from_secs(30),
        keep: PathBuf::from("faults-kept"),
        keeps_all: false,
    };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--namespaces" => {
                options.in_namespaces = true;
                continue;
            }
            "--keep-all" => {
                options.keeps_all = true;
                continue;
            }
            _ => {}
        }
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--minutes" => options.time = Duration::from_secs_f64(value.parse::<f64>()? * 60.0),
            "--rounds" => options.rounds_max = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--keep" => options.keep = PathBuf::from(value),
            "--faults" => {
                let kind =
                    |name| Kind::from_name(name).with_context(|| format!("{name} is no fault"));
                options.kinds = value.split(',').map(kind).collect::<Result<_>>()?;
            }
            _ => bail!("unknown flag {flag}"),
        }
    }
    println!(
        "seed {}, {} s, members {} in {}",
        options.seed,
        options.time.as_secs(),
        kv_tests::kvd_binary().display(),
        if options.in_namespaces {
            "network namespaces"
        } else {
            "one namespace, behind links"
        }
    );
    let summary = faults::run(options).await?;
    println!("{}", summary.show());
    println!(
        "{} violations, {} undecided, {} skipped",
        summary.violations(),
        summary.undecided(),
        summary.skipped.len()
    );
    Ok(summary.violations() == 0 && summary.undecided() == 0)
}

async fn measure(command: &str, args: &[String]) -> Result<bool> {
    let rounds = match args {
        [] => 10,
        [flag, rounds] if flag == "--rounds" => rounds.parse()?,
        _ => bail!("the only flag is --rounds"),
    };
    let pauses = match command {
        "failover" => measure::failovers(rounds).await?,
        _ => measure::moves(rounds).await?,
    };
    for pause in &pauses {
        println!(
            "{} ms, {} puts failed twice",
            pause.pause.as_millis(),
            pause.failed_twice
        );
    }
    println!(
        "{command}: median {} ms of {rounds}",
        measure::median(&pauses).as_millis()
    );
    Ok(true)
}

fn check(files: &[String]) -> Result<bool> {
    let mut is_good = true;
    for file in files {
        let history = history::load(Path::new(file))?;
        match linearizability::check(&history, Limits::default()) {
            Verdict::Linearizable => println!("{file}: linearizable"),
            Verdict::Undecided { requests } => {
                is_good = false;
                println!("{file}: undecided on {requests} requests");
            }
            Verdict::Violation(violation) => {
                is_good = false;
                println!("{file}: {violation}");
            }
        }
    }
    Ok(is_good)
}

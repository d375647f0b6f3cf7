//! The crash tests in large numbers: `torture kill|cut|control [--engine E] [--rounds N] [--seed N]`.
//!
//! `control` is for a member built with `unsafe-no-fsync`, named by `KVD_BIN`: each of its rounds must fail.
//! Prints one line per round; the first failure ends the run with its seed and its folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kv_tests::torture::power_cut::Run;
use kv_tests::torture::{ENGINES, kill, strace};

/// Kill rounds on one folder, so that no log grows for ever.
const KILLS_PER_FOLDER: u64 = 25;
/// Cuts of one traced run.
const CUTS_PER_RUN: u64 = 20;

struct Options {
    kind: String,
    engines: Vec<String>,
    rounds: u64,
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match parse() {
        Ok(options) => run(&options).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Options> {
    let mut args = std::env::args().skip(1);
    let kind = args
        .next()
        .context("say what to do: kill, cut or control")?;
    let mut options = Options {
        kind,
        engines: ENGINES.map(str::to_owned).to_vec(),
        rounds: 50,
        seed: 1,
    };
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--engine" => options.engines = vec![value],
            "--rounds" => options.rounds = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            _ => bail!("unknown flag {flag}"),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<()> {
    for engine in &options.engines {
        let started = Instant::now();
        match options.kind.as_str() {
            "kill" => kills(engine, options).await?,
            "cut" => cuts(engine, options).await?,
            "control" => control(engine, options).await?,
            other => bail!("{other} is not kill, cut or control"),
        }
        println!(
            "{engine}: {} rounds of {} passed in {} s, seeds from {}",
            options.rounds,
            options.kind,
            started.elapsed().as_secs(),
            options.seed
        );
    }
    Ok(())
}

async fn kills(engine: &str, options: &Options) -> Result<()> {
    let mut done = 0;
    for seed in options.seed.. {
        let rounds = (options.rounds - done).min(KILLS_PER_FOLDER);
        if rounds == 0 {
            break;
        }
        let work = work_folder(None)?;
        let report = kill::run(&work, engine, seed, rounds)
            .await
            .with_context(|| format!("see {}", work.display()))?;
        std::fs::remove_dir_all(&work)?;
        println!("{engine}, seed {seed}: {report:?}");
        done += rounds;
    }
    Ok(())
}

async fn cuts(engine: &str, options: &Options) -> Result<()> {
    if !strace::is_available() {
        bail!("strace is missing or may not trace: install it (apt-get install strace)");
    }
    let mut done = 0;
    for seed in options.seed.. {
        let cuts = (options.rounds - done).min(CUTS_PER_RUN);
        if cuts == 0 {
            break;
        }
        let work = work_folder(None)?;
        let recorded = Run::record(&work, engine, seed).await;
        let run =
            recorded.with_context(|| format!("{engine}, seed {seed}: see {}", work.display()))?;
        std::fs::remove_dir_all(&work)?;
        let shown = run
            .check_acknowledgements()
            .with_context(|| format!("{engine}, seed {seed}"))?;
        println!("{engine}, seed {seed}: {shown:?}");
        // An image needs no disk that keeps it.
        let images = work_folder(Some(Path::new("/dev/shm")))?;
        for number in 0..cuts {
            let image = images.join(number.to_string());
            let report = run
                .cut(&image, number)
                .await
                .with_context(|| format!("see {}", image.display()))?;
            std::fs::remove_dir_all(&image)?;
            println!("{engine}, seed {seed}, cut {number}: {report:?}");
        }
        std::fs::remove_dir_all(&images)?;
        done += cuts;
    }
    Ok(())
}

/// Runs members without fsync, which must not pass.
async fn control(engine: &str, options: &Options) -> Result<()> {
    for seed in options.seed..options.seed + options.rounds {
        let work = work_folder(None)?;
        let run = Run::record(&work, engine, seed).await?;
        match run.check_acknowledgements() {
            Ok(shown) => {
                bail!("{engine}, seed {seed}: fsyncs were seen where there must be none: {shown:?}")
            }
            Err(error) => println!("{engine}, seed {seed}: noticed: {error:#}"),
        }
        let image = work.join("image");
        let (mut cuts, mut lost) = (0, None);
        while lost.is_none() && cuts < CUTS_PER_RUN {
            lost = run.cut(&image, cuts).await.err();
            std::fs::remove_dir_all(&image)?;
            cuts += 1;
        }
        match lost {
            Some(error) => println!("{engine}, seed {seed}: noticed at cut {cuts}: {error:#}"),
            None => bail!("{engine}, seed {seed}: {cuts} cuts without fsync lost nothing"),
        }
        std::fs::remove_dir_all(&work)?;
    }
    Ok(())
}

fn work_folder(parent: Option<&Path>) -> Result<PathBuf> {
    let folder = match parent.filter(|parent| parent.is_dir()) {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    Ok(folder?.keep())
}

//! Where log lines go and how they look.
//!
//! A line has the fields that etcd's logger writes, so collectors need no new rules: `level`, `ts` (UTC), `caller`, `msg`,
//! and the event's own fields. As JSON it is one object; for people the first four are separated by tabs and the rest
//! follows as JSON. Each line reaches every output in one write. A failing output is skipped: the log must not stop a member.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat, LogLevel};

/// Libraries that report at `info` and below what only their authors need.
const QUIET_LIBRARIES: [&str; 5] = ["openraft", "h2", "hyper", "rustls", "sled"];

/// Modules of openraft that warn of every message which a dead member does not get, ten times a second; the transport
/// says once that a member is lost. Or of every vote that is refused or comes late.
const REPETITIVE: [&str; 4] = [
    "openraft::core::raft_core",
    "openraft::core::heartbeat",
    "openraft::replication",
    "openraft::engine::handler::replication_handler",
];

/// Why logging cannot start.
#[derive(Debug, Error)]
pub enum Error {
    /// A file that cannot be appended to.
    #[error("cannot open the log file {}: {source}; check --log-outputs", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in this process logs already.
    #[error("logging was started twice in one process")]
    AlreadyStarted,
}

/// Starts logging for the whole process, as `--log-level`, `--log-format` and `--log-outputs` say.
pub fn start(config: &Config) -> Result<(), Error> {
    let outputs = Outputs::open(&config.log_outputs)?;
    subscriber(config, outputs)
        .try_init()
        .map_err(|_| Error::AlreadyStarted)
}

fn subscriber(config: &Config, outputs: Outputs) -> impl Subscriber + Send + Sync + 'static {
    let level = match config.log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Panic | LogLevel::Fatal => LevelFilter::ERROR,
    };
    let quiet = level.min(LevelFilter::WARN);
    let targets = Targets::new()
        .with_default(level)
        .with_targets(QUIET_LIBRARIES.map(|library| (library, quiet)))
        .with_targets(REPETITIVE.map(|module| (module, LevelFilter::ERROR)));
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Line {
            format: config.log_format,
        })
        .with_writer(outputs);
    tracing_subscriber::registry().with(targets).with(lines)
}

/// Every place a line is written to.
#[derive(Clone)]
struct Outputs {
    sinks: Arc<Mutex<Vec<Box<dyn Write + Send>>>>,
}

impl Outputs {
    fn open(names: &[String]) -> Result<Outputs, Error> {
        let mut sinks: Vec<Box<dyn Write + Send>> = Vec::new();
        for name in names {
            sinks.push(match name.as_str() {
                // A service's stderr is in the journal already.
                "default" | "stderr" | "systemd/journal" => Box::new(io::stderr()),
                "stdout" => Box::new(io::stdout()),
                path => Box::new(append_to(path).map_err(|source| Error::Output {
                    path: path.into(),
                    source,
                })?),
            });
        }
        if sinks.is_empty() {
            sinks.push(Box::new(io::stderr()));
        }
        Ok(Outputs {
            sinks: Arc::new(Mutex::new(sinks)),
        })
    }
}

fn append_to(path: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for sink in self.sinks.lock().iter_mut() {
            // The other outputs still get the line.
            let _ = sink.write_all(line).and_then(|()| sink.flush());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Outputs;

    fn make_writer(&'a self) -> Outputs {
        self.clone()
    }
}

/// Formats one event as one line.
struct Line {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let (time, caller) = (timestamp(now()), caller(metadata.file(), metadata.line()));
        let rest = Value::Object(fields.rest);
        match self.format {
            LogFormat::Json => {
                let message = Value::String(fields.message);
                write!(
                    line,
                    "{{\"level\":\"{level}\",\"ts\":\"{time}\",\"caller\":\"{caller}\",\"msg\":{message}"
                )?;
                match rest.to_string().strip_prefix('{') {
                    Some("}") | None => writeln!(line, "}}"),
                    Some(rest) => writeln!(line, ",{rest}"),
                }
            }
            LogFormat::Console => {
                // One event is one line, whatever its message holds.
                let message = fields.message.replace('\n', "\\n");
                write!(line, "{time}\t{level}\t{caller}\t{message}")?;
                if rest.as_object().is_some_and(|rest| !rest.is_empty()) {
                    write!(line, "\t{rest}")?;
                }
                writeln!(line)
            }
        }
    }
}

/// An event's fields in the order in which JSON prints them.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.rest.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.put(field, value.into());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.put(field, format!("{value:?}").into());
        }
    }
}

/// The file with its folder, and the line, as in `server/tls.rs:12`.
fn caller(file: Option<&str>, line: Option<u32>) -> String {
    let file = file.unwrap_or("unknown");
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{}", &file[start..], line.unwrap_or(0))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time of a log line is for people; nothing replays from it"
)]
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Time since 1970 as `2026-11-20T18:32:34.123456Z`.
fn timestamp(since_epoch: Duration) -> String {
    let (days, second_of_day) = (
        since_epoch.as_secs() / 86_400,
        since_epoch.as_secs() % 86_400,
    );
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    );
    let micros = since_epoch.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of the Gregorian calendar. Counts in eras of 400 years that begin on the 1st of March, so that the
/// leap day is the last of its year. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `log` writes with these settings.
    fn lines(config: &Config, log: impl FnOnce()) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kvd.log");
        let outputs = Outputs::open(&[path.display().to_string()]).unwrap();
        tracing::subscriber::with_default(subscriber(config, outputs), log);
        std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn config(level: LogLevel, format: LogFormat) -> Config {
        Config {
            log_level: level,
            log_format: format,
            ..Config::default()
        }
    }

    #[test]
    fn json_lines_have_etcd_s_fields_and_the_event_s_own() {
        let lines = lines(&config(LogLevel::Info, LogFormat::Json), || {
            tracing::info!(term = 7, peer = %"p\"1", slow = true, took_ms = 1.5, "became \"leader\"\nnow");
            tracing::warn!("bare");
        });
        let first: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first["level"], "info");
        assert_eq!(first["msg"], "became \"leader\"\nnow");
        assert_eq!(first["term"], 7);
        assert_eq!(first["peer"], "p\"1");
        assert_eq!(first["slow"], true);
        assert_eq!(first["took_ms"], 1.5);
        assert!(
            first["caller"]
                .as_str()
                .unwrap()
                .starts_with("src/logging.rs:"),
            "{first}"
        );
        assert_eq!(
            first["ts"].as_str().unwrap().len(),
            "2026-11-20T18:32:34.123456Z".len()
        );
        let second: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(second.as_object().unwrap().len(), 4);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn console_lines_are_separated_by_tabs() {
        let lines = lines(&config(LogLevel::Info, LogFormat::Console), || {
            tracing::error!(index = 3, "two\nlines");
        });
        let parts: Vec<&str> = lines[0].split('\t').collect();
        assert_eq!(parts[1], "error");
        assert_eq!(parts[3..], ["two\\nlines", "{\"index\":3}"]);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn levels_hide_what_is_less_severe() {
        let check = |level: LogLevel, expect: usize| {
            let lines = lines(&config(level, LogFormat::Json), || {
                tracing::debug!("d");
                tracing::info!("i");
                tracing::warn!("w");
                tracing::error!("e");
            });
            assert_eq!(lines.len(), expect, "{level:?}");
        };
        check(LogLevel::Debug, 4);
        check(LogLevel::Info, 3);
        check(LogLevel::Warn, 2);
        check(LogLevel::Error, 1);
        check(LogLevel::Fatal, 1);
    }

    #[test]
    fn consensus_library_is_heard_from_warnings_on() {
        let lines = lines(&config(LogLevel::Debug, LogFormat::Json), || {
            tracing::info!(target: "openraft::core", "chatter");
            tracing::warn!(target: "openraft::core", "heard");
            tracing::warn!(target: "openraft::replication", "a dead member again");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("heard"));
    }

    #[test]
    fn unopenable_output_is_named() {
        let error = Outputs::open(&["/nonexistent/kvd.log".to_owned()])
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("/nonexistent/kvd.log"),
            "{error}"
        );
        assert!(error.to_string().contains("--log-outputs"), "{error}");
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        let check =
            |secs: u64, expect: &str| assert_eq!(timestamp(Duration::from_secs(secs)), expect);
        check(0, "1970-01-01T00:00:00.000000Z");
        check(951_782_399, "2000-02-28T23:59:59.000000Z");
        check(951_782_400, "2000-02-29T00:00:00.000000Z");
        check(1_709_251_200, "2024-03-01T00:00:00.000000Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000000Z");
        assert_eq!(
            timestamp(Duration::from_micros(1_000_001)),
            "1970-01-01T00:00:01.000001Z"
        );
    }
}

//! The config file: YAML (or JSON, which is YAML), keys as the table names them.
//!
//! Keys match in any case; nested ones stand under their parents (`client-transport-security:` `cert-file:`). Durations
//! are integers of nanoseconds, URL lists are comma-separated texts, other lists are YAML lists; a duration or list written
//! as on the command line is read too. Null leaves the default. Unknown keys are told and left alone.

use std::path::Path;

use serde_json::Value;

use super::Error;
use super::flags::{FLAGS, Flag};
use super::notice::Notice;
use super::removed::{REMOVED, Successor};
use super::settings::Settings;

/// Reads the file into settings that hold nothing else.
pub(super) fn read(path: &Path) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::FileUnreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut settings = parse(path, &text)?;
    settings.notices.push(Notice::FileOnly {
        path: path.display().to_string(),
    });
    Ok(settings)
}

fn parse(path: &Path, text: &str) -> Result<Settings, Error> {
    let malformed = |why: String| Error::FileMalformed {
        path: path.to_owned(),
        why,
    };
    let document: Value = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))?
    };
    let mut settings = Settings::new();
    match document {
        Value::Null => {}
        Value::Object(keys) => {
            for (key, value) in keys {
                read_key(path, &mut settings, key, value)?;
            }
        }
        _ => {
            return Err(malformed(
                "it must consist of keys with values, such as name: infra1".to_owned(),
            ));
        }
    }
    Ok(settings)
}

/// Reads one key; an object that is not itself a setting is a group of nested keys.
fn read_key(path: &Path, settings: &mut Settings, key: String, value: Value) -> Result<(), Error> {
    let flag = FLAGS.iter().find(|flag| {
        flag.yaml
            .is_some_and(|yaml| yaml.eq_ignore_ascii_case(&key))
    });
    let bad_value = |why: &str| Error::FileValue {
        path: path.to_owned(),
        key: key.clone(),
        why: why.to_owned(),
    };
    if let Some(flag) = flag {
        if !value.is_null() {
            let text = text_of(flag, &value).map_err(bad_value)?;
            flag.check(&text).map_err(|why| bad_value(&why))?;
            settings.give(flag, text);
        }
    } else if let Some(removed) = REMOVED
        .iter()
        .find(|removed| removed.name.eq_ignore_ascii_case(&key))
    {
        match removed.successor {
            Successor::None(_) => settings.notices.push(Notice::UnknownKey { key }),
            Successor::Gate(_) => {
                settings.give_old(removed, plain_text(&value).map_err(bad_value)?)
            }
            Successor::Flag(name) => {
                if let Some(flag) = super::flags::find(name) {
                    settings.give_old(removed, text_of(flag, &value).map_err(bad_value)?);
                }
            }
        }
    } else if let Value::Object(nested) = value {
        for (inner, value) in nested {
            read_key(path, settings, format!("{key}.{inner}"), value)?;
        }
    } else if !value.is_null() {
        // A group whose keys are all commented out is null.
        settings.notices.push(Notice::UnknownKey { key });
    }
    Ok(())
}

/// The value in the form in which the flag would take it.
fn text_of(flag: &Flag, value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Number(nanos) if flag.is_duration() => match nanos.as_u64() {
            Some(nanos) => Ok(format!("{nanos}ns")),
            None => Err("expected a duration as a whole number of nanoseconds"),
        },
        Value::Array(items) => {
            let items: Result<Vec<String>, _> = items.iter().map(plain_text).collect();
            Ok(items?.join(","))
        }
        // The value of log-rotation-config-json may be written as YAML itself.
        Value::Object(_) => Ok(value.to_string()),
        _ => plain_text(value),
    }
}

fn plain_text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null => Ok(String::new()),
        Value::Array(_) | Value::Object(_) => Err("expected a single value"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::time::Duration;

    fn config(text: &str) -> (Config, Vec<Notice>) {
        parse(Path::new("etcd.yaml"), text)
            .unwrap()
            .finish()
            .unwrap()
    }

    #[test]
    fn nested_keys_and_plain_keys_are_read() {
        let (config, notices) = config(
            "name: infra1\n\
             listen-client-urls: http://10.0.0.1:2379,http://127.0.0.1:2379\n\
             heartbeat-interval: 250\n\
             pre-vote: false\n\
             client-transport-security:\n  cert-file: /etc/server.crt\n  client-cert-auth: true\n\
             socket-options:\n  reuse-port: true\n\
             cipher-suites: [TLS_A, TLS_B]\n",
        );
        assert_eq!(config.name, "infra1");
        assert_eq!(config.listen_client_urls.len(), 2);
        assert_eq!(config.heartbeat_interval, Duration::from_millis(250));
        assert!(!config.pre_vote);
        assert_eq!(
            config.client_tls.cert_file.as_deref(),
            Some(Path::new("/etc/server.crt"))
        );
        assert!(config.client_tls.client_cert_auth);
        assert!(config.socket_reuse_port);
        assert_eq!(config.cipher_suites, ["TLS_A", "TLS_B"]);
        assert!(
            notices
                .iter()
                .all(|notice| matches!(notice, Notice::NoEffect { .. })),
            "{notices:?}"
        );
    }

    #[test]
    fn durations_are_nanoseconds() {
        let (config, _) =
            config("watch-progress-notify-interval: 5000000000\ngrpc-keepalive-interval: 1h\n");
        assert_eq!(
            config.watch_progress_notify_interval,
            Duration::from_secs(5)
        );
        assert_eq!(config.grpc_keepalive_interval, Duration::from_secs(3_600));
    }

    #[test]
    fn keys_match_in_any_case_and_null_is_the_default() {
        let (config, notices) = config(
            "Name: a\nDATA-DIR: /d\nwal-dir: null\nclient-transport-security:\nwal-dir-typo: 1\n",
        );
        assert_eq!(config.name, "a");
        assert_eq!(config.data_dir, Path::new("/d"));
        assert_eq!(config.wal_dir, None);
        assert_eq!(
            notices,
            [Notice::UnknownKey {
                key: "wal-dir-typo".to_owned()
            }]
        );
    }

    #[test]
    fn json_is_read_too() {
        let (config, _) = config(
            r#"{"name": "j", "quota-backend-bytes": 8589934592, "auto-compaction-retention": "8"}"#,
        );
        assert_eq!(config.name, "j");
        assert_eq!(config.quota_bytes(), Some(8 << 30));
        assert_eq!(config.auto_compaction_retention, "8");
    }

    #[test]
    fn empty_file_is_the_defaults() {
        let (config, notices) = config("# nothing\n");
        assert_eq!(config.name, "default");
        assert_eq!(notices, []);
    }

    #[test]
    fn wrong_values_name_the_key() {
        let error = parse(
            Path::new("etcd.yaml"),
            "client-transport-security:\n  auto-tls: maybe\n",
        )
        .err()
        .unwrap();
        let text = error.to_string();
        assert!(
            text.contains("etcd.yaml") && text.contains("client-transport-security.auto-tls"),
            "{text}"
        );
        let error = parse(Path::new("etcd.yaml"), "a: [1\nb").err().unwrap();
        assert!(error.to_string().contains("not valid YAML"), "{error}");
        let error = parse(Path::new("etcd.yaml"), "just words").err().unwrap();
        assert!(error.to_string().contains("keys with values"), "{error}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = read(Path::new("/nonexistent/etcd.yaml")).err().unwrap();
        assert!(
            error.to_string().contains("/nonexistent/etcd.yaml"),
            "{error}"
        );
    }
}

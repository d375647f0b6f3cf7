//! `txn`: reads compares and two lists of requests from standard input, and runs them as one transaction.
//!
//! ```text
//! mod("key1") > "0"            compares: ver|version, c|create, m|mod, val|value, lease; = != > <
//!                              an empty line ends each of the three blocks
//! put key1 "overwrote-key1"    requests if all compares hold: get, put, del with their flags
//!
//! put key1 "created-key1"      requests if one fails
//!
//! ```

use std::{ffi::OsString, io, os::unix::ffi::OsStringExt};

use clap::{Args, Parser, Subcommand};
use kv_client::Txn;
use kv_proto::etcdserverpb::{
    Compare,
    compare::{CompareResult, CompareTarget, TargetUnion},
};

use super::{
    del::{self, DelArgs},
    get::GetArgs,
    put::PutArgs,
    stdin::Lines,
};
use crate::{
    cli,
    exit::{Exit, Failure, Result},
    number::parse_int,
    printer::Answer,
    quote::{unquote_prefix, words},
    session::{Session, write_out},
};

/// Flags of `txn`.
#[derive(Args, Debug)]
pub(crate) struct TxnArgs {
    /// Print prompts
    #[arg(long, short)]
    interactive: bool,
    #[arg(hide = true)]
    extra: Vec<OsString>,
}

/// Runs `txn`. It has no timeout: the input may be typed.
pub(crate) async fn run(session: &Session, args: TxnArgs) -> Result<()> {
    if !args.extra.is_empty() {
        return Err(Failure::bad_args("txn command does not accept argument"));
    }
    let client = session.patient_client().await?;
    let mut lines = Lines::read();
    let mut txn = Txn::new();
    prompt(args.interactive, "compares:")?;
    while let Some(line) = next_line(&mut lines, "compares").await? {
        txn = txn.when(compare(&line)?);
    }
    prompt(args.interactive, "success requests (get, put, del):")?;
    while let Some(line) = next_line(&mut lines, "success requests").await? {
        txn = txn.then(operation(&line).await?);
    }
    prompt(args.interactive, "failure requests (get, put, del):")?;
    while let Some(line) = next_line(&mut lines, "failure requests").await? {
        txn = txn.or_else(operation(&line).await?);
    }
    let response = client.txn(txn.into_request()).await?;
    session.print(&Answer::Txn(&response))
}

fn prompt(interactive: bool, text: &str) -> Result<()> {
    if interactive {
        write_out(format!("{text}\n").as_bytes())
    } else {
        Ok(())
    }
}

/// The next line of a block, trimmed; `None` at the empty line that ends it.
async fn next_line(lines: &mut Lines, block: &str) -> Result<Option<String>> {
    let Some(line) = lines.next().await? else {
        return Err(invalid(format!(
            "EOF: the {block} are not ended by an empty line"
        )));
    };
    let line = line.trim();
    Ok((!line.is_empty()).then(|| line.to_owned()))
}

fn invalid(message: String) -> Failure {
    Failure::new(Exit::InvalidInput, message)
}

/// Reads `target("key") op "value"`.
fn compare(line: &str) -> Result<Compare> {
    let malformed = || {
        let grammar = "expected target(\"key\") op \"value\" with spaces around op";
        invalid(format!("malformed comparison: {line}; {grammar}"))
    };
    let (target, rest) = line.split_once('(').ok_or_else(malformed)?;
    let (key, rest) = unquote_prefix(rest.trim_start()).ok_or_else(malformed)?;
    let rest = rest
        .strip_prefix(')')
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .ok_or_else(malformed)?;
    let (op, rest) = rest
        .trim_start()
        .split_once(char::is_whitespace)
        .ok_or_else(malformed)?;
    let (value, _) = unquote_prefix(rest.trim_start()).ok_or_else(malformed)?;
    let result = match op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => {
            return Err(invalid(format!(
                "malformed comparison: {line} (unknown operator {op}; use =, !=, > or <)"
            )));
        }
    };
    let number = |radix| {
        let text = String::from_utf8_lossy(&value);
        parse_int(&text, radix)
            .map_err(|e| invalid(format!("invalid txn compare request: {line} ({e})")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(number(10)?),
        ),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.into())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        _ => {
            return Err(invalid(format!(
                "malformed comparison: {line} (unknown target {target})"
            )));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        ..Default::default()
    })
}

#[derive(Debug, Parser)]
#[command(
    name = "txn",
    infer_subcommands = true,
    args_override_self = true,
    disable_help_flag = true
)]
struct Line {
    #[command(subcommand)]
    request: Request,
}

#[derive(Debug, Subcommand)]
enum Request {
    Get(GetArgs),
    Put(PutArgs),
    Del(DelArgs),
}

/// Reads a line such as `put key "value" --prev-kv`.
async fn operation(line: &str) -> Result<kv_client::Operation> {
    let words = words(line).map_err(invalid)?;
    if words.len() < 2 {
        return Err(invalid(format!("invalid txn compare request: {line}")));
    }
    let parsed = cli::parse_words::<Line>(words.into_iter().map(OsString::from_vec).collect());
    let line = parsed.map_err(|error| {
        let text = error.render().to_string();
        let cause = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        invalid(format!("invalid txn request: {line} ({cause})"))
    })?;
    Ok(match line.request {
        Request::Get(args) => args.request()?.into(),
        // Standard input holds the transaction, so a value cannot come from there.
        Request::Put(args) => args.request(&mut io::empty())?.into(),
        Request::Del(args) => {
            let (request, warning) = args.request()?;
            del::pause(warning).await;
            request.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use kv_proto::etcdserverpb::{PutRequest, RangeRequest, request_op};
    use proptest::prelude::*;

    use super::*;
    use crate::quote::quote;

    #[test]
    fn compares_follow_the_grammar() {
        let read =
            |line: &str| compare(line).map(|c| (c.target(), c.result(), c.key, c.target_union));
        let union = |line: &str| read(line).unwrap().3.unwrap();
        assert_eq!(
            read(r#"mod("a") > "5""#).unwrap(),
            (
                CompareTarget::Mod,
                CompareResult::Greater,
                "a".into(),
                Some(TargetUnion::ModRevision(5))
            )
        );
        assert_eq!(
            union(r#"m( "a")   !=    "-1" trailing"#),
            TargetUnion::ModRevision(-1)
        );
        assert_eq!(union(r#"c("a") < "0""#), TargetUnion::CreateRevision(0));
        assert_eq!(union(r#"version("a") = "3""#), TargetUnion::Version(3));
        assert_eq!(
            union(r#"val("a\101") = "\x2d2""#),
            TargetUnion::Value("-2".into())
        );
        assert_eq!(union("value(`a`) = `0`"), TargetUnion::Value("0".into()));
        assert_eq!(union(r#"lease("a") = "1f""#), TargetUnion::Lease(0x1f));
    }

    #[test]
    fn malformed_compares_are_invalid_input() {
        for line in [
            "nonsense",
            r#"mod("a")>"0""#,
            r#"mod("a")> "0""#,
            r#"mod("a") >"0""#,
            r#"mod("a" ) > "0""#,
            r#"mod(a) > "0""#,
            r#"mod ("a") > "0""#,
            r#"mod("a") > "x""#,
            r#"mod("a") == "0""#,
            r#"val("a") = "\q""#,
            r#"what("a") = "0""#,
        ] {
            assert_eq!(
                compare(line).unwrap_err().exit,
                Exit::InvalidInput,
                "{line}"
            );
        }
    }

    async fn step(line: &str) -> Result<request_op::Request> {
        let request = Txn::new().then(operation(line).await?).into_request();
        Ok(request.success[0].request.clone().unwrap())
    }

    #[tokio::test]
    async fn requests_are_command_lines() {
        let put = PutRequest {
            key: "a b".into(),
            value: "c\nd".into(),
            prev_kv: true,
            ..Default::default()
        };
        assert_eq!(
            step(r#"put "a b" "c\nd" --prev-kv"#).await.unwrap(),
            request_op::Request::RequestPut(put)
        );
        let get = RangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            limit: 3,
            ..Default::default()
        };
        assert_eq!(
            step("g a --prefix --limit 3").await.unwrap(),
            request_op::Request::RequestRange(get)
        );
        let request_op::Request::RequestDeleteRange(del) = step("del '' --from-key").await.unwrap()
        else {
            panic!("not a delete");
        };
        assert_eq!((&del.key[..], &del.range_end[..]), (&b"\0"[..], &b"\0"[..]));
    }

    #[tokio::test]
    async fn bad_requests_exit_as_etcdctl_does() {
        for (line, exit) in [
            ("put", Exit::InvalidInput),
            ("put x", Exit::BadArgs),
            ("nonsense x", Exit::InvalidInput),
            ("get x --nonsense", Exit::InvalidInput),
            (r#"put "x\q" y"#, Exit::InvalidInput),
            ("get a --sort-by x", Exit::BadFeature),
            ("put a b --lease zz", Exit::BadArgs),
        ] {
            assert_eq!(step(line).await.unwrap_err().exit, exit, "{line}");
        }
    }

    proptest! {
        #[test]
        fn quoted_keys_and_values_of_compares_read_back(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let line = format!("val({}) = {}", quote(&key), quote(&value));
            let compare = compare(&line).unwrap();
            prop_assert_eq!(&compare.key[..], &key[..]);
            prop_assert_eq!(compare.target_union, Some(TargetUnion::Value(value.into())));
        }

        #[test]
        fn no_line_panics(line in "\\PC{0,60}") {
            let _ = compare(&line);
        }
    }
}

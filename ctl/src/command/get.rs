//! `get`: reads a key or a range.

use std::ffi::OsString;

use clap::Args;
use kv_proto::etcdserverpb::{
    RangeRequest,
    range_request::{SortOrder, SortTarget},
};

use super::{into_bytes, is_serializable, widen};
use crate::{
    exit::{Exit, Failure, Result},
    number::parse_flag_int,
    printer::{Answer, Form},
    session::Session,
};

/// Flags of `get`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// The key, or the range [key, range_end)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// l (linearizable): all that is acknowledged, by a quorum; s (serializable): what the member knows, without the others
    #[arg(long, default_value = "l")]
    consistency: String,
    /// ASCEND or DESCEND; ascending if not given
    #[arg(long, default_value = "")]
    order: String,
    /// What the order is of: KEY, VERSION, CREATE, MODIFY or VALUE; the keys if not given
    #[arg(long, default_value = "")]
    sort_by: String,
    /// At most so many keys; 0 means all
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    pub(crate) limit: i64,
    /// Read all keys that begin with KEY
    #[arg(long)]
    pub(crate) prefix: bool,
    /// Read KEY and all keys after it, in the order of their bytes
    #[arg(long)]
    pub(crate) from_key: bool,
    /// Read what was there at this revision; 0 means now
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    pub(crate) rev: i64,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Count the keys only; needs --write-out=fields
    #[arg(long)]
    count_only: bool,
    /// Print values without their keys; needs --write-out=simple
    #[arg(long)]
    print_value_only: bool,
    /// Leave out keys that were created before this revision
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    min_create_rev: i64,
    /// Leave out keys that were created after this revision
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    max_create_rev: i64,
    /// Leave out keys that were last written before this revision
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    min_mod_rev: i64,
    /// Leave out keys that were last written after this revision
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    max_mod_rev: i64,
    /// Get the answer in pieces (RangeStream), so that it may be of any size
    #[arg(long)]
    stream: bool,
}

impl GetArgs {
    /// The request these flags ask for.
    pub(crate) fn request(self) -> Result<RangeRequest> {
        let mut keys = self.keys.into_iter().map(into_bytes);
        let Some(key) = keys.next() else {
            let message =
                "get command needs one argument as key and an optional argument as range_end";
            return Err(Failure::bad_args(message));
        };
        if self.prefix && self.from_key {
            return Err(Failure::bad_args(
                "`--prefix` and `--from-key` cannot be set at the same time, choose one",
            ));
        }
        if self.keys_only && self.count_only {
            return Err(Failure::bad_args(
                "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
            ));
        }
        let serializable = is_serializable(&self.consistency)?;
        let given_end = keys.next();
        if given_end.is_some() && (self.prefix || self.from_key) {
            let message = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
            return Err(Failure::bad_args(message));
        }
        let target = sort_target(&self.sort_by)?;
        let order = match sort_order(&self.order)? {
            // The order that comes anyway: asking for it would make the server sort the whole range.
            SortOrder::Ascend if target == SortTarget::Key => SortOrder::None,
            order => order,
        };
        check_bounds(
            "getMinCreateRev",
            self.min_create_rev,
            "getMaxCreateRev",
            self.max_create_rev,
        )?;
        check_bounds(
            "getMinModRev",
            self.min_mod_rev,
            "getMaxModRev",
            self.max_mod_rev,
        )?;
        let (key, widened_end) = widen(key, self.prefix, self.from_key);
        Ok(RangeRequest {
            key,
            range_end: given_end.unwrap_or(widened_end),
            limit: self.limit,
            revision: self.rev.max(0),
            sort_order: order.into(),
            sort_target: target.into(),
            serializable,
            keys_only: self.keys_only,
            count_only: self.count_only,
            min_mod_revision: self.min_mod_rev.max(0),
            max_mod_revision: self.max_mod_rev.max(0),
            min_create_revision: self.min_create_rev.max(0),
            max_create_revision: self.max_create_rev.max(0),
        })
    }
}

/// Runs `get`.
pub(crate) async fn run(session: &Session, args: GetArgs) -> Result<()> {
    let (count_only, value_only, stream) = (args.count_only, args.print_value_only, args.stream);
    let request = args.request()?;
    let client = session.client().await?;
    let response = if stream {
        client.range_stream(request).await?
    } else {
        client.range(request).await?
    };
    if count_only && session.form() != Form::Fields {
        return Err(Failure::bad_args(
            "--count-only is only for `--write-out=fields`",
        ));
    }
    if value_only && session.form() != Form::Simple {
        return Err(Failure::bad_args(
            "print-value-only is only for `--write-out=simple`",
        ));
    }
    session.print(&Answer::Get {
        response: &response,
        value_only,
    })
}

fn sort_order(name: &str) -> Result<SortOrder> {
    match name.to_uppercase().as_str() {
        "" => Ok(SortOrder::None),
        "ASCEND" => Ok(SortOrder::Ascend),
        "DESCEND" => Ok(SortOrder::Descend),
        _ => Err(Failure::new(
            Exit::BadFeature,
            format!("bad sort order {name}; use ASCEND or DESCEND"),
        )),
    }
}

fn sort_target(name: &str) -> Result<SortTarget> {
    match name.to_uppercase().as_str() {
        "" | "KEY" => Ok(SortTarget::Key),
        "CREATE" => Ok(SortTarget::Create),
        "MODIFY" => Ok(SortTarget::Mod),
        "VALUE" => Ok(SortTarget::Value),
        "VERSION" => Ok(SortTarget::Version),
        _ => {
            let message =
                format!("bad sort target {name}; use CREATE, KEY, MODIFY, VALUE or VERSION");
            Err(Failure::new(Exit::BadFeature, message))
        }
    }
}

fn check_bounds(min_name: &str, min: i64, max_name: &str, max: i64) -> Result<()> {
    if max > 0 && min > max {
        return Err(Failure::new(
            Exit::BadFeature,
            format!("{min_name}(={min}) > {max_name}(={max})"),
        ));
    }
    Ok(())
}

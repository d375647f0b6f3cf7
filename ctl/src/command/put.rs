//! `put`: writes one key.

use std::{
    ffi::OsString,
    io::{self, Read},
};

use bytes::Bytes;
use clap::Args;
use kv_proto::etcdserverpb::PutRequest;

use super::into_bytes;
use crate::{
    exit::{Failure, Result},
    number::parse_int,
    printer::Answer,
    session::Session,
};

const USAGE: &str = "put command needs 1 argument and input from stdin or 2 arguments";

/// Flags of `put`.
#[derive(Args, Debug)]
#[command(
    after_help = "Without VALUE the value is read from standard input.\nBefore a VALUE that begins with '-' insert '--'."
)]
pub(crate) struct PutArgs {
    /// The key and its value
    #[arg(value_name = "KEY [VALUE]")]
    words: Vec<OsString>,
    /// The lease that the key ends with, in hexadecimal; 0 means none
    #[arg(long, default_value = "0")]
    lease: String,
    /// Print what the key was before
    #[arg(long)]
    prev_kv: bool,
    /// Keep the value as it is: for a new lease
    #[arg(long)]
    ignore_value: bool,
    /// Keep the lease as it is
    #[arg(long)]
    ignore_lease: bool,
}

impl PutArgs {
    /// The request these flags ask for; `input` is read if there is no value among the words.
    pub(crate) fn request(self, input: &mut dyn Read) -> Result<PutRequest> {
        let mut words = self.words.into_iter().map(into_bytes);
        let key = words.next().ok_or_else(|| Failure::bad_args(USAGE))?;
        let value = match (words.next(), self.ignore_value) {
            (Some(_), true) => {
                return Err(Failure::bad_args(
                    "put command needs only 1 argument when 'ignore-value' is set",
                ));
            }
            (None, true) => Bytes::new(),
            (Some(value), false) => value,
            (None, false) => {
                let mut value = Vec::new();
                match input.read_to_end(&mut value) {
                    Ok(read) if read > 0 => value.into(),
                    _ => return Err(Failure::bad_args(USAGE)),
                }
            }
        };
        let lease = parse_int(&self.lease, 16)
            .map_err(|e| Failure::bad_args(format!("bad lease ID ({e}), expecting ID in Hex")))?;
        Ok(PutRequest {
            key,
            value,
            lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        })
    }
}

/// Runs `put`.
pub(crate) async fn run(session: &Session, args: PutArgs) -> Result<()> {
    let request = args.request(&mut io::stdin().lock())?;
    let response = session.client().await?.put(request).await?;
    session.print(&Answer::Put(&response))
}

//! `lease`: grants, revokes, shows and keeps alive leases.

use clap::{Args, Subcommand};
use kv_proto::etcdserverpb::{LeaseGrantRequest, LeaseTimeToLiveRequest};

use crate::{
    exit::{self, Exit, Failure, Result},
    number::parse_int,
    printer::{Answer, Form},
    session::{Session, write_out},
};

/// The subcommands of `lease`.
#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Makes a lease of a number of seconds
    Grant(GrantArgs),
    /// Ends a lease, which deletes its keys
    Revoke(RevokeArgs),
    /// How long a lease was granted for and has left
    Timetolive(TimeToLiveArgs),
    /// Ids of all leases
    List(ListArgs),
    /// Renews a lease until it is interrupted
    KeepAlive(KeepAliveArgs),
}

/// Arguments of `lease grant`.
#[derive(Args, Debug)]
pub(crate) struct GrantArgs {
    /// Seconds
    ttl: Vec<String>,
}

/// Arguments of `lease revoke`.
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    /// Hexadecimal
    lease_id: Vec<String>,
}

/// Flags of `lease timetolive`.
#[derive(Args, Debug)]
pub(crate) struct TimeToLiveArgs {
    /// Hexadecimal
    lease_id: Vec<String>,
    /// Print the lease's keys, too
    #[arg(long)]
    keys: bool,
}

/// Arguments of `lease list`; it heeds none.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Flags of `lease keep-alive`.
#[derive(Args, Debug)]
pub(crate) struct KeepAliveArgs {
    /// Hexadecimal
    lease_id: Vec<String>,
    /// Renew once and end
    #[arg(long)]
    once: bool,
}

/// Runs a subcommand of `lease`.
pub(crate) async fn run(session: &Session, command: LeaseCommand) -> Result<()> {
    match command {
        LeaseCommand::Grant(args) => grant(session, &args.ttl).await,
        LeaseCommand::Revoke(args) => revoke(session, &args.lease_id).await,
        LeaseCommand::Timetolive(args) => time_to_live(session, args).await,
        LeaseCommand::List(_) => {
            let response = session
                .patient_client()
                .await?
                .lease_leases()
                .await
                .map_err(bad_connection)?;
            session.print(&Answer::Leases(&response))
        }
        LeaseCommand::KeepAlive(args) => keep_alive(session, args).await,
    }
}

async fn grant(session: &Session, args: &[String]) -> Result<()> {
    let [ttl] = args else {
        return Err(Failure::bad_args("lease grant command needs TTL argument"));
    };
    let ttl = parse_int(ttl, 10).map_err(|e| Failure::bad_args(format!("bad TTL ({e})")))?;
    let client = session.client().await?;
    let response = client
        .lease_grant(LeaseGrantRequest { ttl, id: 0 })
        .await
        .map_err(|e| failed_to("grant", &e))?;
    session.print(&Answer::Grant(&response))
}

async fn revoke(session: &Session, args: &[String]) -> Result<()> {
    let id = lease_id(args, "lease revoke command needs 1 argument")?;
    let response = session
        .client()
        .await?
        .lease_revoke(id)
        .await
        .map_err(|e| failed_to("revoke", &e))?;
    session.print(&Answer::Revoke {
        id,
        response: &response,
    })
}

async fn time_to_live(session: &Session, args: TimeToLiveArgs) -> Result<()> {
    let id = lease_id(
        &args.lease_id,
        "lease timetolive command needs lease ID as argument",
    )?;
    let request = LeaseTimeToLiveRequest {
        id,
        keys: args.keys,
    };
    let response = session
        .patient_client()
        .await?
        .lease_time_to_live(request)
        .await
        .map_err(bad_connection)?;
    session.print(&Answer::TimeToLive {
        response: &response,
        keys: args.keys,
    })
}

async fn keep_alive(session: &Session, args: KeepAliveArgs) -> Result<()> {
    let id = lease_id(
        &args.lease_id,
        "lease keep-alive command needs lease ID as argument",
    )?;
    let client = session.patient_client().await?;
    if args.once {
        let response = client
            .lease_keep_alive_once(id)
            .await
            .map_err(bad_connection)?;
        return session.print(&Answer::KeepAlive(&response));
    }
    let mut lease = client.lease_keep_alive(id);
    while let Some(response) = lease.renewed().await {
        session.print(&Answer::KeepAlive(&response))?;
    }
    if session.form() == Form::Simple {
        write_out(format!("lease {id:016x} expired or revoked.\n").as_bytes())?;
    }
    Ok(())
}

fn lease_id(args: &[String], usage: &str) -> Result<i64> {
    let [id] = args else {
        return Err(Failure::bad_args(usage));
    };
    parse_int(id, 16)
        .map_err(|e| Failure::bad_args(format!("bad lease ID arg ({e}), expecting ID in Hex")))
}

fn failed_to(verb: &str, error: &kv_client::Error) -> Failure {
    Failure::new(
        Exit::Error,
        format!("failed to {verb} lease ({})", exit::describe(error)),
    )
}

/// Lease commands without a timeout report every failed call as a bad connection.
fn bad_connection(error: kv_client::Error) -> Failure {
    Failure::new(Exit::BadConnection, exit::describe(&error))
}

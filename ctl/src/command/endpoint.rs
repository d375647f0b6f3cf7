//! `endpoint`: health, status and hash of each endpoint by itself.

use clap::{Args, Subcommand};
use kv_proto::etcdserverpb::{AlarmRequest, AlarmType, MemberListRequest, RangeRequest};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    exit::{self, Exit, Failure, Result},
    number,
    printer::{Answer, Health},
    session::Session,
};

/// Flags of `endpoint`.
#[derive(Args, Debug)]
pub(crate) struct EndpointArgs {
    /// Ask every member of the cluster, at the client URLs it advertises
    #[arg(long, global = true)]
    cluster: bool,
    #[command(subcommand)]
    command: EndpointCommand,
}

/// The subcommands of `endpoint`.
#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Reads a key and the alarms through each endpoint, and says whether that worked
    Health(Ignored),
    /// Version, sizes, leader and log position of each endpoint
    Status(Ignored),
    /// Hash of the keys and their revisions at each endpoint, to compare members
    Hashkv(HashKvArgs),
}

/// Arguments that are not heeded.
#[derive(Args, Debug)]
pub(crate) struct Ignored {
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Flags of `endpoint hashkv`.
#[derive(Args, Debug)]
pub(crate) struct HashKvArgs {
    /// Hash what was there at this revision; 0 means now
    #[arg(long, default_value = "0", value_parser = number::parse_flag_int)]
    rev: i64,
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Runs a subcommand of `endpoint`.
pub(crate) async fn run(session: &Session, args: EndpointArgs) -> Result<()> {
    let endpoints = endpoints(session, args.cluster).await?;
    match args.command {
        EndpointCommand::Health(_) => health(session, endpoints).await,
        EndpointCommand::Status(_) => status(session, endpoints).await,
        EndpointCommand::Hashkv(args) => hash_kv(session, endpoints, args.rev).await,
    }
}

/// The endpoints of `--endpoints`, or with `cluster` the client URLs of all members.
pub(crate) async fn endpoints(session: &Session, cluster: bool) -> Result<Vec<String>> {
    if !cluster {
        return Ok(session.global().endpoints.clone());
    }
    let request = MemberListRequest { linearizable: true };
    let list = session
        .client()
        .await?
        .member_list(request)
        .await
        .map_err(|error| {
            let cause = exit::describe(&error);
            Failure::new(
                Exit::Error,
                format!("failed to fetch endpoints from etcd cluster member list: {cause}"),
            )
        })?;
    Ok(list
        .members
        .into_iter()
        .flat_map(|member| member.client_ur_ls)
        .collect())
}

async fn health(session: &Session, endpoints: Vec<String>) -> Result<()> {
    let mut checks = JoinSet::new();
    for endpoint in endpoints {
        let session = session.clone();
        checks.spawn(async move { check(&session, endpoint).await });
    }
    // In the order in which the endpoints answer.
    let mut all = Vec::new();
    while let Some(health) = checks.join_next().await {
        all.push(
            health.map_err(|e| {
                Failure::new(Exit::Error, format!("a health check ended early: {e}"))
            })?,
        );
    }
    session.print(&Answer::Health(&all))?;
    match all.iter().all(|health| health.error.is_empty()) {
        true => Ok(()),
        false => Err(Failure::new(Exit::Error, "unhealthy cluster")),
    }
}

async fn check(session: &Session, endpoint: String) -> Health {
    let client = match session.client_of(&endpoint).await {
        Ok(client) => client,
        Err(failure) => {
            let error = failure.message.unwrap_or_default();
            return Health {
                endpoint,
                healthy: false,
                took: String::new(),
                error,
            };
        }
    };
    let start = Instant::now();
    // Any key does: a linearizable read needs a quorum. Without permission it was refused after that.
    let read = client
        .range(RangeRequest {
            key: "health".into(),
            ..Default::default()
        })
        .await;
    let took = number::duration(start.elapsed());
    let error = match read {
        Err(error) if !error.is_permission_denied() => {
            if matches!(error, kv_client::Error::Timeout { .. }) {
                exit::tell(format_args!("{endpoint}: {}", exit::describe(&error)));
            }
            exit::brief(&error)
        }
        _ => alarms(&client).await,
    };
    Health {
        endpoint,
        healthy: error.is_empty(),
        took,
        error,
    }
}

/// What the alarms of the cluster say about its health; empty if nothing.
async fn alarms(client: &kv_client::Client) -> String {
    let Ok(response) = client.alarm(AlarmRequest::default()).await else {
        return "Unable to fetch the alarm list".to_owned();
    };
    if response.alarms.is_empty() {
        return String::new();
    }
    let name = |alarm: AlarmType| match alarm {
        AlarmType::Nospace => "NOSPACE ",
        AlarmType::Corrupt => "CORRUPT ",
        AlarmType::None => "UNKNOWN ",
    };
    let names: String = response
        .alarms
        .iter()
        .map(|member| name(member.alarm()))
        .collect();
    format!("Active Alarm(s): {names}")
}

async fn status(session: &Session, endpoints: Vec<String>) -> Result<()> {
    let (mut answers, mut failed) = (Vec::new(), false);
    for endpoint in endpoints {
        match session.client_of(&endpoint).await?.status().await {
            Ok(status) => answers.push((endpoint, status)),
            Err(error) => {
                failed = true;
                exit::tell(format_args!(
                    "Failed to get the status of endpoint {endpoint} ({})",
                    exit::describe(&error)
                ));
            }
        }
    }
    session.print(&Answer::Status(&answers))?;
    if failed {
        Err(Failure::silent(Exit::Error))
    } else {
        Ok(())
    }
}

async fn hash_kv(session: &Session, endpoints: Vec<String>, revision: i64) -> Result<()> {
    let (mut answers, mut last) = (Vec::new(), None);
    for endpoint in endpoints {
        match session.client_of(&endpoint).await?.hash_kv(revision).await {
            Ok(hash) => answers.push((endpoint, hash)),
            Err(error) => {
                exit::tell(format_args!(
                    "Failed to get the hash of endpoint {endpoint} ({})",
                    exit::describe(&error)
                ));
                last = Some(error);
            }
        }
    }
    session.print(&Answer::HashKv(&answers))?;
    last.map_or(Ok(()), |error| Err(error.into()))
}

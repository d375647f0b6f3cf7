//! `member`: the members of the cluster, and `move-leader`, which says who of them leads.

use clap::{Args, Subcommand};
use kv_client::Client;
use kv_proto::etcdserverpb::{MemberAddRequest, MemberListRequest, MemberUpdateRequest};

use super::is_serializable;
use crate::{
    exit::{Exit, Failure, Result},
    number,
    printer::Answer,
    session::Session,
};

/// The subcommands of `member`.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Ids, names and URLs of all members
    List(ListArgs),
    /// Tells the cluster of a new member, which starts after that
    Add(AddArgs),
    /// Takes a member out of the cluster for ever
    Remove(IdArgs),
    /// Gives a member other peer URLs
    Update(UpdateArgs),
    /// Lets a learner that has caught up vote
    Promote(IdArgs),
}

/// Flags of `member list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// l (linearizable): as a quorum knows it; s (serializable): as the member knows it
    #[arg(long, default_value = "l")]
    consistency: String,
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Flags of `member add`.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Peer URLs of the new member, separated by commas
    #[arg(long, default_value = "")]
    peer_urls: String,
    /// The new member replicates and does not vote
    #[arg(long)]
    learner: bool,
    /// The name the new member will have
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Flags of `member update`.
#[derive(Args, Debug)]
pub(crate) struct UpdateArgs {
    /// The new peer URLs of the member, separated by commas
    #[arg(long, default_value = "")]
    peer_urls: String,
    #[command(flatten)]
    id: IdArgs,
}

/// A member, by its id.
#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    /// The member's id, in hexadecimal as `member list` shows it
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

/// Arguments of `move-leader`.
#[derive(Args, Debug)]
pub(crate) struct MoveLeaderArgs {
    /// Id of the member that shall lead, in hexadecimal
    #[arg(value_name = "ID")]
    targets: Vec<String>,
}

/// Runs a subcommand of `member`.
pub(crate) async fn run(session: &Session, command: MemberCommand) -> Result<()> {
    match command {
        MemberCommand::List(args) => list(session, args).await,
        MemberCommand::Add(args) => add(session, args).await,
        MemberCommand::Remove(args) => {
            let id = args.id()?;
            let response = session.client().await?.member_remove(id).await?;
            session.print(&Answer::MemberRemove {
                id,
                response: &response,
            })
        }
        MemberCommand::Update(args) => {
            let id = args.id.id()?;
            let request = MemberUpdateRequest {
                id,
                peer_ur_ls: urls(&args.peer_urls)?,
            };
            let response = session.client().await?.member_update(request).await?;
            session.print(&Answer::MemberUpdate {
                id,
                response: &response,
            })
        }
        MemberCommand::Promote(args) => {
            let id = args.id()?;
            let response = session.client().await?.member_promote(id).await?;
            session.print(&Answer::MemberPromote {
                id,
                response: &response,
            })
        }
    }
}

async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let linearizable = !is_serializable(&args.consistency)?;
    let response = session
        .client()
        .await?
        .member_list(MemberListRequest { linearizable })
        .await?;
    session.print(&Answer::Members(&response))
}

async fn add(session: &Session, args: AddArgs) -> Result<()> {
    let name = match &args.names[..] {
        [] => return Err(Failure::bad_args("member name not provided")),
        [name] => name,
        many => {
            let hints = many.iter().filter(|arg| arg.starts_with("http"));
            let hints: String = hints
                .map(|url| format!(", did you mean --peer-urls={url}"))
                .collect();
            return Err(Failure::bad_args(format!("too many arguments{hints}")));
        }
    };
    let request = MemberAddRequest {
        peer_ur_ls: urls(&args.peer_urls)?,
        is_learner: args.learner,
    };
    let response = session.client().await?.member_add(request).await?;
    session.print(&Answer::MemberAdd {
        name,
        peer_urls: &args.peer_urls,
        response: &response,
    })
}

fn urls(list: &str) -> Result<Vec<String>> {
    if list.is_empty() {
        return Err(Failure::bad_args("member peer urls not provided"));
    }
    list.split(',')
        .map(|url| check_url(url.trim()).map(|()| url.to_owned()))
        .collect()
}

/// What makes no peer URL is refused before anyone is asked. Source: etcd client v3.7, types.NewURLs.
fn check_url(url: &str) -> Result<()> {
    let refuse = |why: &str| Err(Failure::new(Exit::Error, format!("{why}: {url}")));
    let Some((scheme @ ("http" | "https" | "unix" | "unixs"), rest)) = url.split_once("://") else {
        return refuse("URL scheme must be http, https, unix, or unixs");
    };
    if scheme.starts_with("unix") {
        return Ok(());
    }
    let (address, path) = rest
        .find('/')
        .map_or((rest, ""), |slash| rest.split_at(slash));
    match address.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => {}
        _ => return refuse("URL address does not have the form \"host:port\""),
    }
    if !path.is_empty() {
        return refuse("URL must not contain a path");
    }
    Ok(())
}

impl IdArgs {
    fn id(&self) -> Result<u64> {
        let [id] = &self.ids[..] else {
            return Err(Failure::bad_args("member ID is not provided"));
        };
        number::parse_id(id).map_err(|error| {
            Failure::bad_args(format!("bad member ID arg ({error}), expecting ID in Hex"))
        })
    }
}

/// Runs `move-leader`: asks the leader, which must be among the endpoints.
pub(crate) async fn move_leader(session: &Session, args: MoveLeaderArgs) -> Result<()> {
    let [target] = &args.targets[..] else {
        return Err(Failure::bad_args("move-leader command needs 1 argument"));
    };
    let to = number::parse_id(target).map_err(Failure::bad_args)?;
    let (leader, from) = leader(session).await?;
    let response = leader.move_leader(to).await?;
    session.print(&Answer::MoveLeader {
        from,
        to,
        response: &response,
    })
}

/// A client of the endpoint that leads, with its id.
async fn leader(session: &Session) -> Result<(Client, u64)> {
    let endpoints = &session.global().endpoints;
    for endpoint in endpoints {
        let client = session.client_of(endpoint).await?;
        let status = client.status().await?;
        let id = status.header.unwrap_or_default().member_id;
        if id == status.leader {
            return Ok((client, id));
        }
    }
    Err(Failure::bad_args(format!(
        "no leader endpoint given at [{}]",
        endpoints.join(" ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_checked_before_the_call() {
        let refusal = |list: &str| urls(list).unwrap_err().message.unwrap();
        assert_eq!(urls("http://a:1,https://[::1]:2").unwrap().len(), 2);
        assert_eq!(
            refusal("foo"),
            "URL scheme must be http, https, unix, or unixs: foo"
        );
        assert_eq!(
            refusal("http://a:1,http://b"),
            "URL address does not have the form \"host:port\": http://b"
        );
        assert_eq!(
            refusal("http://a:1/x"),
            "URL must not contain a path: http://a:1/x"
        );
    }
}

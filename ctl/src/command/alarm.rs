//! `alarm`: lists and clears alarms.

use clap::{Args, Subcommand};
use kv_client::Client;
use kv_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, alarm_request::AlarmAction,
};

use crate::{
    exit::{Failure, Result},
    printer::Answer,
    session::Session,
};

/// The subcommands of `alarm`.
#[derive(Debug, Subcommand)]
pub(crate) enum AlarmCommand {
    /// Which members raised which alarms
    List(NoArgs),
    /// Clears all alarms; what raised one raises it again if it goes on
    Disarm(NoArgs),
}

/// Arguments of `alarm list` and `alarm disarm`: there are none.
#[derive(Args, Debug)]
pub(crate) struct NoArgs {
    #[arg(hide = true)]
    extra: Vec<String>,
}

/// Runs a subcommand of `alarm`.
pub(crate) async fn run(session: &Session, command: AlarmCommand) -> Result<()> {
    let (args, verb) = match &command {
        AlarmCommand::List(args) => (args, "list"),
        AlarmCommand::Disarm(args) => (args, "disarm"),
    };
    if !args.extra.is_empty() {
        return Err(Failure::bad_args(format!(
            "alarm {verb} command accepts no arguments"
        )));
    }
    let client = session.client().await?;
    let raised = client.alarm(AlarmRequest::default()).await?;
    let response = match command {
        AlarmCommand::List(_) => raised,
        AlarmCommand::Disarm(_) => disarm(&client, raised.alarms).await?,
    };
    session.print(&Answer::Alarms(&response))
}

/// Clears each alarm by itself, so that the answer says which there were; it has no header.
async fn disarm(client: &Client, raised: Vec<AlarmMember>) -> Result<AlarmResponse> {
    let mut cleared = AlarmResponse::default();
    for AlarmMember { member_id, alarm } in raised {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id,
            alarm,
        };
        cleared.alarms.extend(client.alarm(request).await?.alarms);
    }
    Ok(cleared)
}

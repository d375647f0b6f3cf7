//! Questions that only the leader answers: any member passes on what its clients ask.
//!
//! They travel as raft's opaque questions between applications (`proto/proto/leader.proto`). A change is not asked for
//! twice when the first answer may only have been lost; what is harmless to repeat is.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::commandpb::{self, Answer, Refusal, answer::Answer as Kind, question::Question};
use kv_raft::PeerError;
use prost::Message;

use crate::member::Member;
use crate::{Error, Result, lease, reconfigure};

/// Pause before a question is put again to the next leader.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers other members while this one leads.
pub(crate) struct Answers(Weak<Member>);

impl Answers {
    /// The answers of `member`, which may stop while others still ask.
    pub(crate) fn of(member: &Arc<Member>) -> Arc<Answers> {
        Arc::new(Answers(Arc::downgrade(member)))
    }
}

impl kv_raft::App for Answers {
    fn answer(&self, request: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
        Box::pin(async move {
            let outcome = match (self.0.upgrade(), commandpb::Question::decode(request)) {
                (None, _) => Err(Error::Stopped),
                (
                    Some(member),
                    Ok(commandpb::Question {
                        question: Some(question),
                    }),
                ) => lead(&member, question).await,
                // Of a newer build, or none: the asking member reports a request that timed out.
                (Some(_), _) => Err(Error::Timeout),
            };
            let kind = match outcome {
                Ok(kind) => kind,
                Err(error) => Kind::Refusal(refusal(&error) as i32),
            };
            Answer { answer: Some(kind) }.encode_to_vec().into()
        })
    }
}

/// Answers `question` as the leader; [`Error::NotLeader`] if this member is not.
async fn lead(member: &Member, question: Question) -> Result<Kind> {
    match question {
        Question::MemberAdd(_)
        | Question::MemberPromote(_)
        | Question::MemberRemove(_)
        | Question::MemberUpdate(_) => {
            reconfigure::lead(member, question).await?;
            // The applied index is published just after the result.
            Ok(Kind::Changed(member.node.status().committed_index))
        }
        Question::LeaseRenew(renew) => lease::lead_renew(member, renew.id)
            .await
            .map(Kind::LeaseRenewed),
        Question::LeaseLook(look) => lease::lead_look(member, look).await.map(Kind::LeaseSeen),
    }
}

/// Puts `question` to the leader, which may be this member, until there is one that answers, within the request
/// timeout.
pub(crate) async fn ask(member: &Member, question: Question) -> Result<Kind> {
    let asking = async {
        loop {
            let leader = known_leader(member).await?;
            let answer = if leader == member.id {
                lead(member, question.clone()).await
            } else {
                let timeout = member.config.request_timeout();
                ask_peer(member, leader, question.clone(), timeout).await
            };
            match answer {
                Err(Error::NotLeader) => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(member.config.request_timeout(), asking)
        .await
        .unwrap_or(Err(Error::Timeout))
}

/// As [`ask`], for a question that may be answered twice: an answer that was lost is asked for again.
///
/// Without a leader for all of the request timeout the error is [`Error::NoLeader`], as etcd's.
pub(crate) async fn ask_until_answered(member: &Member, question: Question) -> Result<Kind> {
    // A leader that stands still is given up by then, and another one elected.
    let attempt = member.config.election_timeout * 2;
    let asking = async {
        loop {
            let leader = known_leader(member).await?;
            let answer = if leader == member.id {
                lead(member, question.clone()).await
            } else {
                ask_peer(member, leader, question.clone(), attempt).await
            };
            match answer {
                Err(Error::NotLeader | Error::Timeout) => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    };
    match tokio::time::timeout(member.config.request_timeout(), asking).await {
        Ok(answer) => answer,
        Err(_) if member.has_leader() => Err(Error::Timeout),
        Err(_) => Err(Error::NoLeader),
    }
}

async fn known_leader(member: &Member) -> Result<u64> {
    let mut status = member.node.watch_status();
    let known = status.wait_for(|status| status.leader.is_some()).await;
    known
        .ok()
        .and_then(|status| status.leader)
        .ok_or(Error::Stopped)
}

async fn ask_peer(
    member: &Member,
    leader: u64,
    question: Question,
    timeout: Duration,
) -> Result<Kind> {
    let request = commandpb::Question {
        question: Some(question),
    };
    let answer = member
        .node
        .ask(leader, request.encode_to_vec().into(), timeout)
        .await;
    let bytes = match answer {
        Ok(bytes) => bytes,
        Err(PeerError::NotSent(_)) => return Err(Error::NotLeader),
        Err(error) => {
            tracing::warn!(peer = format!("{leader:x}"), %error, "the leader gave no answer");
            return Err(Error::Timeout);
        }
    };
    match Answer::decode(bytes).ok().and_then(|answer| answer.answer) {
        Some(Kind::Refusal(refusal)) => Err(error(refusal)),
        Some(kind) => Ok(kind),
        None => Err(Error::Timeout),
    }
}

fn refusal(error: &Error) -> Refusal {
    match error {
        Error::NotLeader => Refusal::NotLeader,
        Error::Stopped => Refusal::Stopped,
        Error::MemberExists => Refusal::MemberExists,
        Error::PeerUrlExists => Refusal::PeerUrlExists,
        Error::NotEnoughStarted => Refusal::NotEnoughStarted,
        Error::MemberNotFound => Refusal::MemberNotFound,
        Error::MemberNotLearner => Refusal::NotLearner,
        Error::LearnerNotReady => Refusal::LearnerNotReady,
        Error::TooManyLearners => Refusal::TooManyLearners,
        Error::Unhealthy => Refusal::Unhealthy,
        Error::TooManyRequests => Refusal::TooManyRequests,
        // Everything else is no answer of a leader.
        _ => Refusal::Timeout,
    }
}

fn error(refusal: i32) -> Error {
    match Refusal::try_from(refusal) {
        Ok(Refusal::NotLeader) => Error::NotLeader,
        Ok(Refusal::MemberExists) => Error::MemberExists,
        Ok(Refusal::PeerUrlExists) => Error::PeerUrlExists,
        Ok(Refusal::NotEnoughStarted) => Error::NotEnoughStarted,
        Ok(Refusal::MemberNotFound) => Error::MemberNotFound,
        Ok(Refusal::NotLearner) => Error::MemberNotLearner,
        Ok(Refusal::LearnerNotReady) => Error::LearnerNotReady,
        Ok(Refusal::TooManyLearners) => Error::TooManyLearners,
        Ok(Refusal::Unhealthy) => Error::Unhealthy,
        Ok(Refusal::TooManyRequests) => Error::TooManyRequests,
        // A leader that stops has perhaps done it.
        Ok(Refusal::Stopped | Refusal::Timeout | Refusal::Unspecified) | Err(_) => Error::Timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_leader_refuses_with_arrives_as_it_is() {
        let refusals = [
            Error::NotLeader,
            Error::MemberExists,
            Error::PeerUrlExists,
            Error::NotEnoughStarted,
            Error::MemberNotFound,
            Error::MemberNotLearner,
            Error::LearnerNotReady,
            Error::TooManyLearners,
            Error::Unhealthy,
            Error::TooManyRequests,
            Error::Timeout,
        ];
        for refused in refusals {
            assert_eq!(error(refusal(&refused) as i32), refused);
        }
    }

    #[test]
    fn an_outcome_that_is_not_certain_is_a_timeout() {
        assert_eq!(error(refusal(&Error::Stopped) as i32), Error::Timeout);
        assert_eq!(error(99), Error::Timeout);
    }
}

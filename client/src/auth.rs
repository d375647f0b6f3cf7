//! Getting a token.

use kv_proto::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};

use crate::{
    Client,
    error::{Error, Result},
    retry::Repeat,
};

/// What a server without authentication answers to a password. Source: etcd 3.7, `rpctypes`.
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

impl Client {
    /// A token for `user`, or `None` where authentication is not enabled. Ends within the connect timeout.
    pub(crate) async fn authenticate(&self, user: &str, password: &str) -> Result<Option<String>> {
        let request = AuthenticateRequest {
            name: user.to_owned(),
            password: password.to_owned(),
        };
        let limit = Some(self.config().connect_timeout);
        let answer = self
            .call_within(limit, Repeat::Always, request, |channel, request| async move {
                AuthClient::new(channel).authenticate(request).await
            })
            .await;
        match answer {
            Ok(response) => Ok(Some(response.token)),
            Err(Error::Server { message, .. }) if message == NOT_ENABLED => Ok(None),
            Err(error) => Err(error),
        }
    }
}

//! Users, roles, whether auth is enabled, and getting a token.

use kv_proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, auth_client::AuthClient,
};

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

/// Calls that take a request and are made again as `repeat` says.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty: $method:ident, $repeat:ident;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response> {
                self.call(Repeat::$repeat, request, |c, q| async move {
                    AuthClient::new(c).$method(q).await
                })
                .await
            })*
        }
    };
}

calls! {
    /// From now on every call says who makes it; the user root with the role root has to be there.
    auth_enable(AuthEnableRequest) -> AuthEnableResponse: auth_enable, IfNotSent;
    /// From now on nobody is asked who they are, and all tokens end.
    auth_disable(AuthDisableRequest) -> AuthDisableResponse: auth_disable, IfNotSent;
    /// Whether auth is enabled, and how often users and roles have changed.
    auth_status(AuthStatusRequest) -> AuthStatusResponse: auth_status, Always;
    /// Adds a user, with a password or with none for ever.
    user_add(AuthUserAddRequest) -> AuthUserAddResponse: user_add, IfNotSent;
    /// Removes a user; the user's tokens end.
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse: user_delete, IfNotSent;
    /// The roles of a user.
    user_get(AuthUserGetRequest) -> AuthUserGetResponse: user_get, Always;
    /// The names of all users.
    user_list(AuthUserListRequest) -> AuthUserListResponse: user_list, Always;
    /// Gives a user another password; the user's tokens end.
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse:
        user_change_password, IfNotSent;
    /// Gives a user a role.
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse: user_grant_role, IfNotSent;
    /// Takes a role from a user.
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse: user_revoke_role, IfNotSent;
    /// Adds a role that permits nothing.
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse: role_add, IfNotSent;
    /// Removes a role, also from the users who have it.
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse: role_delete, IfNotSent;
    /// What a role permits.
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse: role_get, Always;
    /// The names of all roles.
    role_list(AuthRoleListRequest) -> AuthRoleListResponse: role_list, Always;
    /// Has a role permit reading or writing keys.
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse:
        role_grant_permission, IfNotSent;
    /// Takes a permission from a role.
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse:
        role_revoke_permission, IfNotSent;
}

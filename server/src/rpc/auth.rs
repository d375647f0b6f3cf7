//! The Auth service: changes of users and roles go through the log, what they are is read here after a barrier.
//!
//! Everything but Authenticate and AuthStatus is for the root role, except that users may look at themselves and at
//! their own roles. A password is hashed or compared before anything is proposed, and dropped. Source: etcd 3.7,
//! etcdserver/v3_server.go.

use std::sync::Arc;

use kv_proto::command::{AuthChange, Body, Caller};
use kv_proto::commandpb;
use kv_proto::etcdserverpb::auth_server::Auth;
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
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};
use tonic::{Request, Response, Status};

use super::credentials;
use super::kv::unexpected;
use crate::apply::Response as Applied;
use crate::auth::{Credentials, State};
use crate::member::Member;
use crate::{Error, Result};

/// The service over a member.
#[derive(Clone)]
pub(crate) struct AuthService(pub(crate) Arc<Member>);

impl AuthService {
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.0.header(self.0.store.revision()))
    }

    /// Has a change applied.
    async fn change(&self, credentials: &Credentials, change: AuthChange) -> Result<(), Status> {
        match self.0.propose(credentials, Body::Auth(change)).await? {
            Applied::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The caller and the state that all acknowledged changes have made.
    async fn look(&self, credentials: &Credentials) -> Result<(Caller, Arc<State>)> {
        let caller = self.0.caller(credentials).await?;
        self.0.reads.linearizable().await?;
        Ok((caller, self.0.auth.state()))
    }

    /// Whether it is worth while to hash a password for the caller, which takes long.
    async fn check_before_hashing(&self, credentials: &Credentials) -> Result<()> {
        if !self.0.auth.is_enabled() {
            return Ok(());
        }
        let (caller, auth) = self.look(credentials).await?;
        auth.check_admin(&caller)
    }

    /// Compares the password; the auth revision that the comparison holds for.
    async fn compare(&self, request: &AuthenticateRequest) -> Result<u64> {
        let auth = self.0.auth.state();
        if !auth.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = auth.user(&request.name).ok_or(Error::AuthFailed)?;
        let hash = user.password_hash()?;
        let passwords = &self.0.auth.passwords;
        if !passwords.is_of(hash, request.password.clone()).await? {
            return Err(Error::AuthFailed);
        }
        Ok(auth.revision())
    }

    /// A token for a user whose password was compared as of auth revision `compared`; `None` if that is not the revision
    /// any more.
    async fn token(&self, user: &str, compared: u64) -> Result<Option<String>, Status> {
        let auth = &self.0.auth;
        let body = Body::Authenticate(commandpb::Authenticate {
            name: user.to_owned(),
            simple_token: auth.token_letters(),
        });
        let applied = self.0.propose(&Credentials::default(), body).await?;
        let Applied::Authenticated { token, revision } = applied else {
            return Err(unexpected(&applied));
        };
        let token = match token {
            Some(token) => token,
            None => auth.sign_token(user, revision).await?,
        };
        Ok((auth.revision() == compared).then_some(token.0))
    }
}

/// The service: methods that propose one command and answer with a header, and those that are `written` out.
macro_rules! auth_service {
    (
        written { $($written:tt)* }
        $($method:ident($request:ty) -> $response:ident: $change:expr;)*
    ) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let credentials = credentials(&request);
                let change = $change;
                self.change(&credentials, change(request.into_inner())).await?;
                Ok(Response::new($response { header: self.header() }))
            })*

            $($written)*
        }
    };
}

auth_service! {
    written {
        async fn auth_status(
            &self,
            request: Request<AuthStatusRequest>,
        ) -> Result<Response<AuthStatusResponse>, Status> {
            // Nobody has to say who they are; but a token that is not valid is refused.
            let (_, auth) = self.look(&credentials(&request)).await?;
            Ok(Response::new(AuthStatusResponse {
                header: self.header(),
                enabled: auth.is_enabled(),
                auth_revision: auth.revision(),
            }))
        }

        async fn authenticate(
            &self,
            request: Request<AuthenticateRequest>,
        ) -> Result<Response<AuthenticateResponse>, Status> {
            let request = request.into_inner();
            self.0.reads.linearizable().await?;
            loop {
                let compared = match self.compare(&request).await {
                    Err(error @ (Error::AuthFailed | Error::NoPasswordUser)) => {
                        tracing::warn!(user = request.name, %error, "authentication refused");
                        return Err(error.into());
                    }
                    compared => compared?,
                };
                // Users have changed since the comparison: this user's password may be one of the changes.
                let Some(token) = self.token(&request.name, compared).await? else {
                    continue;
                };
                return Ok(Response::new(AuthenticateResponse {
                    header: self.header(),
                    token,
                }));
            }
        }

        async fn user_add(
            &self,
            request: Request<AuthUserAddRequest>,
        ) -> Result<Response<AuthUserAddResponse>, Status> {
            let credentials = credentials(&request);
            let request = request.into_inner();
            let no_password = request.options.is_some_and(|options| options.no_password);
            let mut hashed_password = String::new();
            if !no_password {
                self.check_before_hashing(&credentials).await?;
                hashed_password = self.0.auth.passwords.hash(request.password).await?;
            }
            let change = AuthChange::UserAdd(commandpb::AuthUserAdd {
                name: request.name,
                hashed_password,
                no_password,
            });
            self.change(&credentials, change).await?;
            let header = self.header();
            Ok(Response::new(AuthUserAddResponse { header }))
        }

        async fn user_change_password(
            &self,
            request: Request<AuthUserChangePasswordRequest>,
        ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
            let credentials = credentials(&request);
            let request = request.into_inner();
            // Without a password a hash that the caller has made is taken.
            let mut hashed_password = request.hashed_password;
            if !request.password.is_empty() {
                self.check_before_hashing(&credentials).await?;
                hashed_password = self.0.auth.passwords.hash(request.password).await?;
            }
            let change = AuthChange::UserChangePassword(commandpb::AuthUserChangePassword {
                name: request.name,
                hashed_password,
            });
            self.change(&credentials, change).await?;
            let header = self.header();
            Ok(Response::new(AuthUserChangePasswordResponse { header }))
        }

        async fn user_get(
            &self,
            request: Request<AuthUserGetRequest>,
        ) -> Result<Response<AuthUserGetResponse>, Status> {
            let (caller, auth) = self.look(&credentials(&request)).await?;
            let name = request.into_inner().name;
            if let Err(refusal) = auth.check_admin(&caller)
                && !matches!(&caller, Caller::User { name: own, .. } if *own == name)
            {
                return Err(refusal.into());
            }
            let user = auth.user(&name).ok_or(Error::UserNotFound)?;
            Ok(Response::new(AuthUserGetResponse {
                header: self.header(),
                roles: user.roles().to_vec(),
            }))
        }

        async fn user_list(
            &self,
            request: Request<AuthUserListRequest>,
        ) -> Result<Response<AuthUserListResponse>, Status> {
            let (caller, auth) = self.look(&credentials(&request)).await?;
            auth.check_admin(&caller)?;
            Ok(Response::new(AuthUserListResponse {
                header: self.header(),
                users: auth.user_names(),
            }))
        }

        async fn role_get(
            &self,
            request: Request<AuthRoleGetRequest>,
        ) -> Result<Response<AuthRoleGetResponse>, Status> {
            let (caller, auth) = self.look(&credentials(&request)).await?;
            let role = request.into_inner().role;
            if let Err(refusal) = auth.check_admin(&caller) {
                let own = match &caller {
                    Caller::User { name, .. } => auth.user(name),
                    Caller::Nobody | Caller::Member => None,
                };
                if !own.is_some_and(|user| user.has_role(&role)) {
                    return Err(refusal.into());
                }
            }
            let role = auth.role(&role).ok_or(Error::RoleNotFound)?;
            Ok(Response::new(AuthRoleGetResponse {
                header: self.header(),
                perm: role.permissions(),
            }))
        }

        async fn role_list(
            &self,
            request: Request<AuthRoleListRequest>,
        ) -> Result<Response<AuthRoleListResponse>, Status> {
            let (caller, auth) = self.look(&credentials(&request)).await?;
            auth.check_admin(&caller)?;
            Ok(Response::new(AuthRoleListResponse {
                header: self.header(),
                roles: auth.role_names(),
            }))
        }
    }

    auth_enable(AuthEnableRequest) -> AuthEnableResponse: |_| AuthChange::Enable(commandpb::AuthEnable {});
    auth_disable(AuthDisableRequest) -> AuthDisableResponse: |_| AuthChange::Disable(commandpb::AuthDisable {});
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse: AuthChange::UserDelete;
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse: AuthChange::UserGrantRole;
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse: AuthChange::UserRevokeRole;
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse: AuthChange::RoleAdd;
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse: AuthChange::RoleDelete;
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse:
        AuthChange::RoleGrantPermission;
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse:
        AuthChange::RoleRevokePermission;
}

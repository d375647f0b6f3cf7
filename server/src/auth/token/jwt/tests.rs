//! Keys of every method, who takes whose tokens, and what becomes of them when files change.

use std::path::Path;

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use tempfile::TempDir;

use super::super::TokenKind;
use super::*;

fn options(text: &str) -> JwtOptions {
    match TokenKind::parse(text).unwrap() {
        TokenKind::Jwt(options) => options,
        TokenKind::Simple => panic!("{text} is no JWT"),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Makes the key files of `method` in `folder`; what to pass for both, and for the public one alone.
fn key_files(folder: &Path, method: &str) -> (String, String) {
    if method.starts_with("HS") {
        let secret = write(folder, "secret", "a shared secret");
        let both = format!("jwt,sign-method={method},priv-key={secret}");
        return (both.clone(), both);
    }
    let algorithm = match method {
        "ES256" => &PKCS_ECDSA_P256_SHA256,
        "ES384" => &PKCS_ECDSA_P384_SHA384,
        "EdDSA" => &PKCS_ED25519,
        _ => &PKCS_RSA_SHA256,
    };
    let pair = KeyPair::generate_for(algorithm).unwrap();
    let private = write(folder, "private.pem", &pair.serialize_pem());
    let public = write(folder, "public.pem", &pair.public_key_pem());
    (
        format!("jwt,sign-method={method},pub-key={public},priv-key={private},ttl=10m"),
        format!("jwt,sign-method={method},pub-key={public}"),
    )
}

fn open(text: &str) -> JwtTokens {
    JwtTokens::open(options(text)).unwrap()
}

#[test]
fn tokens_of_every_method_are_taken_with_either_key() {
    for (method, _) in METHODS {
        let folder = TempDir::new().unwrap();
        let (both, public) = key_files(folder.path(), method);
        let signing = open(&both);
        let token = signing.sign("alice", 7).unwrap();
        assert_eq!(
            signing.verify(&token),
            Some(("alice".into(), 7)),
            "{method}"
        );
        let taking = open(&public);
        assert_eq!(taking.verify(&token), Some(("alice".into(), 7)), "{method}");
        if !method.starts_with("HS") {
            assert_eq!(taking.sign("alice", 7), Err(Error::TokenVerifyOnly));
            // The private key alone is enough to take tokens too.
            let private = both.replace("pub-key=", "unused=");
            assert_eq!(open(&private).verify(&token), Some(("alice".into(), 7)));
        }
    }
}

#[test]
fn tokens_of_another_key_another_method_or_none_are_refused() {
    let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let signing = open(&key_files(ours.path(), "RS256").0);
    let other_key = open(&key_files(theirs.path(), "RS256").0);
    let token = other_key.sign("root", 1).unwrap();
    assert_eq!(signing.verify(&token), None);
    // The public key as the secret of an HMAC is the classic confusion.
    let public = std::fs::read(ours.path().join("public.pem")).unwrap();
    let forged = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &NewClaims {
            exp: u64::MAX / 2,
            revision: 1,
            username: "root",
        },
        &EncodingKey::from_secret(&public),
    )
    .unwrap();
    assert_eq!(signing.verify(&forged), None);
    // {"alg":"none"} . {"username":"root","revision":1} . nothing
    let unsigned = "eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6MX0.";
    assert_eq!(signing.verify(unsigned), None);
    for text in ["", "a.b.c", "letters.42"] {
        assert_eq!(signing.verify(text), None);
    }
}

#[test]
fn tokens_end_and_begin_when_they_say() {
    let folder = TempDir::new().unwrap();
    let tokens = open(&key_files(folder.path(), "HS256").0);
    let sign = |claims: serde_json::Value| {
        let key = EncodingKey::from_secret(b"a shared secret");
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
    };
    let now = clock::wall_ms() / 1000;
    let claims = |more: serde_json::Value| {
        let mut claims = serde_json::json!({"username": "alice", "revision": 3});
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        tokens.verify(&sign(claims))
    };
    let alice = Some(("alice".to_owned(), 3));
    assert_eq!(claims(serde_json::json!({})), alice);
    assert_eq!(claims(serde_json::json!({"exp": now + 60})), alice);
    assert_eq!(claims(serde_json::json!({"exp": now - 1})), None);
    assert_eq!(claims(serde_json::json!({"nbf": now + 60})), None);
    assert_eq!(
        claims(serde_json::json!({"aud": "others", "revision": 3.0})),
        alice
    );
    let without_name = serde_json::json!({"revision": 3});
    assert_eq!(tokens.verify(&sign(without_name)), None);
    let without_revision = serde_json::json!({"username": "alice"});
    assert_eq!(tokens.verify(&sign(without_revision)), None);
    let negative = serde_json::json!({"revision": -1});
    assert_eq!(claims(negative), Some(("alice".into(), 0)));
}

#[test]
fn new_key_files_count_and_bad_ones_do_not() {
    let folder = TempDir::new().unwrap();
    let (both, _) = key_files(folder.path(), "ES256");
    let tokens = open(&both);
    let first = tokens.sign("alice", 1).unwrap();
    tokens.recheck();
    assert!(tokens.verify(&first).is_some());

    key_files(folder.path(), "ES256");
    tokens.recheck();
    let second = tokens.sign("alice", 1).unwrap();
    assert!(tokens.verify(&second).is_some());
    assert_eq!(tokens.verify(&first), None);

    write(folder.path(), "private.pem", "half a key");
    tokens.recheck();
    assert!(tokens.verify(&second).is_some());
    std::fs::remove_file(folder.path().join("private.pem")).unwrap();
    tokens.recheck();
    assert!(tokens.verify(&tokens.sign("alice", 1).unwrap()).is_some());
}

#[test]
fn keys_that_do_not_fit_are_named() {
    let folder = TempDir::new().unwrap();
    let refused = |text: &str| {
        let error = JwtTokens::open(options(text)).err().expect("must not open");
        format!("{error:#}")
    };
    let (both, _) = key_files(folder.path(), "RS256");
    let private = std::fs::read_to_string(folder.path().join("private.pem")).unwrap();
    key_files(folder.path(), "RS256");
    write(folder.path(), "private.pem", &private);
    assert!(
        refused(&both).contains("do not belong together"),
        "{}",
        refused(&both)
    );
    let wrong_kind = both.replace("RS256", "ES256");
    assert!(
        refused(&wrong_kind).contains("private.pem"),
        "{}",
        refused(&wrong_kind)
    );
    let missing = "jwt,sign-method=RS256,pub-key=/nowhere/key.pem";
    assert!(refused(missing).contains("/nowhere/key.pem"));
}

#[test]
fn options_are_checked_before_any_file_is_read() {
    let refused = |text: &str| TokenKind::parse(text).unwrap_err();
    assert_eq!(TokenKind::parse("simple"), Ok(TokenKind::Simple));
    assert_eq!(refused("magic"), OptionsError::Kind("magic".into()));
    assert_eq!(refused(""), OptionsError::Kind(String::new()));
    assert_eq!(refused("jwt"), OptionsError::Method(String::new()));
    assert_eq!(
        refused("jwt,sign-method=ES512,priv-key=k"),
        OptionsError::Method("ES512".into())
    );
    assert_eq!(refused("jwt,ttl"), OptionsError::Option("ttl".into()));
    assert_eq!(
        refused("jwt,sign-method=RS256,sign-method=RS512"),
        OptionsError::Option("sign-method=RS512".into())
    );
    assert_eq!(
        refused("jwt,sign-method=RS256,priv-key=k,ttl=soon"),
        OptionsError::Ttl("soon".into())
    );
    for method in ["HS256,pub-key=k", "RS256"] {
        let text = format!("jwt,sign-method={method}");
        assert!(matches!(refused(&text), OptionsError::MissingKey(_)));
    }
}

//! Transactions: every comparison, both arms, nesting, and what is refused.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use rust_client::Server;

use crate::{assert_refused, code};

crate::tests_on_each_transport!(
    comparisons_hold_or_not,
    success_arm_is_one_revision,
    failure_arm_runs_when_a_comparison_fails,
    nested_transaction_takes_its_own_arm,
    bad_transactions_are_refused,
);

async fn comparisons_hold_or_not(server: &Server) {
    use CompareOp::{Equal, Greater, Less, NotEqual};
    let mut client = server.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let create = put(&mut client, "key", "first").await;
    let leased = PutOptions::new().with_lease(lease);
    let response = client.put("key", "m", Some(leased)).await.unwrap();
    let modified = response.header().unwrap().revision();
    put(&mut client, "kez", "n").await;

    let cases = [
        (Compare::value("key", Equal, "m"), true),
        (Compare::value("key", NotEqual, "m"), false),
        (Compare::value("key", Less, "n"), true),
        (Compare::value("key", Greater, "m"), false),
        (Compare::version("key", Equal, 2), true),
        (Compare::version("key", Less, 2), false),
        (Compare::create_revision("key", Equal, create), true),
        (Compare::create_revision("key", Greater, create), false),
        (Compare::mod_revision("key", Equal, modified), true),
        (Compare::mod_revision("key", NotEqual, modified), false),
        (Compare::lease("key", Equal, lease), true),
        (Compare::lease("kez", Equal, lease), false),
        (Compare::version("missing", Equal, 0), true),
        (Compare::value("missing", Equal, ""), false),
        (Compare::version("ke", Greater, 0).with_prefix(), true),
        (Compare::version("ke", Equal, 2).with_prefix(), false),
        (Compare::version("key", Equal, 2).with_range("kez"), true),
    ];
    for (number, (compare, expected)) in cases.into_iter().enumerate() {
        let response = client.txn(Txn::new().when([compare])).await.unwrap();
        assert_eq!(response.succeeded(), expected, "case {number}");
    }
}

async fn success_arm_is_one_revision(server: &Server) {
    let mut client = server.client().await;
    let before = put(&mut client, "old", "1").await;
    let delete_old = DeleteOptions::new().with_prev_key();
    let txn = Txn::new()
        .when([Compare::version("new", CompareOp::Equal, 0)])
        .and_then([
            TxnOp::put("new", "1", None),
            TxnOp::get("new", None),
            TxnOp::delete("old", Some(delete_old)),
            TxnOp::get("old", None),
        ])
        .or_else([TxnOp::put("never", "1", None)]);

    let response = client.txn(txn).await.unwrap();
    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();

    assert!(response.succeeded());
    let responses = response.op_responses();
    let [
        TxnOpResponse::Put(put),
        TxnOpResponse::Get(new),
        TxnOpResponse::Delete(deleted),
        TxnOpResponse::Get(old),
    ] = &responses[..]
    else {
        panic!("{responses:?}");
    };
    assert_eq!(put.header().unwrap().revision(), before + 1);
    assert_eq!(new.kvs()[0].mod_revision(), before + 1);
    assert_eq!(
        (deleted.deleted(), deleted.prev_kvs()[0].value()),
        (1, &b"1"[..])
    );
    assert_eq!(old.count(), 0);
    assert_eq!((all.count(), all.kvs()[0].key()), (1, &b"new"[..]));
    assert_eq!(all.header().unwrap().revision(), before + 1);
}

async fn failure_arm_runs_when_a_comparison_fails(server: &Server) {
    let mut client = server.client().await;
    put(&mut client, "key", "1").await;
    let with_previous = PutOptions::new().with_prev_key();
    let txn = Txn::new()
        .when([
            Compare::value("key", CompareOp::Equal, "1"),
            Compare::value("key", CompareOp::Equal, "2"),
        ])
        .and_then([TxnOp::put("never", "1", None)])
        .or_else([TxnOp::put("key", "2", Some(with_previous))]);

    let response = client.txn(txn).await.unwrap();

    assert!(!response.succeeded());
    match &response.op_responses()[..] {
        [TxnOpResponse::Put(put)] => assert_eq!(put.prev_key().unwrap().value(), b"1"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.get("never", None).await.unwrap().count(), 0);
}

async fn nested_transaction_takes_its_own_arm(server: &Server) {
    let mut client = server.client().await;
    put(&mut client, "key", "1").await;
    let inner = Txn::new()
        .when([Compare::value("key", CompareOp::Equal, "other")])
        .and_then([TxnOp::put("inner-success", "1", None)])
        .or_else([TxnOp::put("inner-failure", "1", None)]);
    let outer = Txn::new()
        .when([Compare::value("key", CompareOp::Equal, "1")])
        .and_then([TxnOp::put("outer", "1", None), TxnOp::txn(inner)]);

    let response = client.txn(outer).await.unwrap();
    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();

    assert!(response.succeeded());
    match &response.op_responses()[..] {
        [TxnOpResponse::Put(_), TxnOpResponse::Txn(inner)] => assert!(!inner.succeeded()),
        other => panic!("{other:?}"),
    }
    let keys: Vec<&str> = all
        .kvs()
        .iter()
        .map(|pair| pair.key_str().unwrap())
        .collect();
    assert_eq!(keys, ["inner-failure", "key", "outer"]);
}

async fn bad_transactions_are_refused(server: &Server) {
    let mut client = server.client().await;
    let twice = [TxnOp::put("key", "1", None), TxnOp::put("key", "2", None)];
    let many: Vec<TxnOp> = (0..129)
        .map(|i| TxnOp::put(i.to_string(), "1", None))
        .collect();

    assert_refused(
        client.txn(Txn::new().and_then(twice)).await,
        code::INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    );
    assert_refused(
        client.txn(Txn::new().and_then(many.clone())).await,
        code::INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    );
    let most = client.txn(Txn::new().and_then(&many[..128])).await.unwrap();
    assert_eq!(most.op_responses().len(), 128);
}

/// Puts one pair; its revision.
async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    let response = client.put(key, value, None).await.unwrap();
    response.header().unwrap().revision()
}

//! Many clients at once, and a server that is killed and comes back.

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, WatchOptions};
use rust_client::{Server, TEST_LIMIT, Transport};

const CLIENTS: usize = 20;

crate::tests_on_each_transport!(concurrent_puts_lose_nothing, compare_and_swap_counts);

async fn concurrent_puts_lose_nothing(server: &Server) {
    let mut client = server.client().await;
    let all = WatchOptions::new().with_all_keys();
    let mut stream = client.watch("", Some(all)).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    let mut writers = Vec::new();
    for writer in 0..CLIENTS {
        let mut own = server.client().await;
        writers.push(tokio::spawn(async move {
            let mut revisions = Vec::new();
            for i in 0..50 {
                let put = own
                    .put(format!("{writer:02}/{i:02}"), "1", None)
                    .await
                    .unwrap();
                revisions.push(put.header().unwrap().revision());
            }
            revisions
        }));
    }

    let mut acknowledged = Vec::new();
    for writer in writers {
        let own = writer.await.unwrap();
        assert!(own.is_sorted());
        acknowledged.extend(own);
    }
    acknowledged.sort_unstable();
    let mut seen = Vec::new();
    while seen.len() < acknowledged.len() {
        let response = stream.message().await.unwrap().unwrap();
        seen.extend(
            response
                .events()
                .iter()
                .map(|event| event.kv().unwrap().mod_revision()),
        );
    }

    assert_eq!(seen, acknowledged);
    assert!(acknowledged.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let stored = client
        .get(
            "",
            Some(GetOptions::new().with_all_keys().with_count_only()),
        )
        .await
        .unwrap();
    assert_eq!(stored.count() as usize, CLIENTS * 50);
}

async fn compare_and_swap_counts(server: &Server) {
    let mut client = server.client().await;
    client.put("counter", "0", None).await.unwrap();
    let mut counters = Vec::new();
    for _ in 0..CLIENTS {
        let mut own = server.client().await;
        counters.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 5 {
                let read = own.get("counter", None).await.unwrap();
                let pair = &read.kvs()[0];
                let next = pair.value_str().unwrap().parse::<usize>().unwrap() + 1;
                let unchanged =
                    Compare::mod_revision("counter", CompareOp::Equal, pair.mod_revision());
                let swap = Txn::new().when([unchanged]).and_then([TxnOp::put(
                    "counter",
                    next.to_string(),
                    None,
                )]);
                done += usize::from(own.txn(swap).await.unwrap().succeeded());
            }
        }));
    }

    for counter in counters {
        counter.await.unwrap();
    }

    let read = client.get("counter", None).await.unwrap();
    let expected = (CLIENTS * 5).to_string();
    assert_eq!(read.kvs()[0].value(), expected.as_bytes());
    assert_eq!(read.kvs()[0].version() as usize, CLIENTS * 5 + 1);
}

#[tokio::test]
async fn killed_server_comes_back_with_everything() {
    let mut server = Server::start(Transport::Tls).await;
    let mut client = server.client().await;
    for i in 0..100 {
        client
            .put(format!("{i:02}"), i.to_string(), None)
            .await
            .unwrap();
    }
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let hash = client.hash_kv(0).await.unwrap();

    server.kill_and_restart().await;

    let mut again = server.client().await;
    assert_eq!(again.hash_kv(0).await.unwrap().hash(), hash.hash());
    let known = again.lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(known.granted_ttl(), 600);
    // The client of before finds the server again by itself; its first calls may meet the broken connection.
    let read = async {
        loop {
            if let Ok(read) = client.get("99", None).await {
                return read;
            }
        }
    };
    let read = tokio::time::timeout(TEST_LIMIT, read).await.unwrap();
    assert_eq!(read.kvs()[0].value(), b"99");
}

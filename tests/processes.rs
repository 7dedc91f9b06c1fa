//! The processes of the extension: when they are there, when they are gone, and whose way they never stand in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::Cluster;

#[tokio::test]
async fn the_processes_are_there_after_create_extension() {
    let cluster = Cluster::start().await;
    let pids = cluster.pids().await;
    assert!(cluster::is_alive(pids.launcher) && cluster::is_alive(pids.gateway) && cluster::is_alive(pids.worker));
}

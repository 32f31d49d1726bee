//! What is left of a lab when its process ends: nothing, however it ends. Needs root.
//!
//! A child process builds a lab and comes to grief. The labs of the child are told from others by the numbers of their
//! namespaces, so that tests may run side by side.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use lb_tests::{
    lab::{Lab, eventually},
    traffic::http::HttpServer,
};
use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};

/// How long the kernel may take to end everything, on a machine that is busy.
const SOON: Duration = Duration::from_secs(10);
/// Set by [`grief`]: how the victim ends.
const GRIEF: &str = "WEIR_LAB_GRIEF";
/// Before the line that names what must be gone.
const MARK: &str = "victim: ";

/// The child process of the tests below; by itself, a lab that ends well.
#[test]
fn victim() {
    // A harness that was started in the background ignores Ctrl-C, and so would this.
    // SAFETY: the default action is no handler that could run at a bad moment.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.unwrap();
    let lab = Lab::builder().nodes(2, 1).client("client").build().expect("a lab (needs root)");
    let node = &lab.nodes()[0];
    let _server = HttpServer::start(&node.pods()[0], "pod", 80).unwrap();
    let mut sleep = node.command("sleep");
    sleep.arg("1000");
    let process = node.start(sleep).unwrap();
    fs::write(node.dir().join("file"), "x").unwrap();
    let identity =
        |kind: &str| node.run(|| fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap());
    println!("{MARK}{} {} {}", process.id(), identity("net").display(), identity("mnt").display());
    match std::env::var(GRIEF).as_deref() {
        Ok("panic") => panic!("as asked"),
        Ok(_) => loop {
            thread::park();
        },
        Err(_) => {}
    }
}

/// Runs [`victim`], ends it with `signal` (None: it panics), and checks that nothing is left of its lab.
fn grief(end: Option<Signal>) {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env("TMPDIR", temporary.path())
        .env(GRIEF, if end.is_some() { "signal" } else { "panic" })
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The harness may have begun this very line with the test's name.
    let line = lines
        .find_map(|line| line.split_once(MARK).map(|(_, rest)| rest.to_owned()))
        .expect("a running lab");
    let (process, namespaces) = line.split_once(' ').unwrap();
    if let Some(signal) = end {
        assert!(Path::new("/proc").join(process).exists());
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), end.map(|signal| signal as i32));
    assert!(!status.success());
    eventually("the lab's process is gone", SOON, || !Path::new("/proc").join(process).exists());
    eventually("nobody holds its namespaces", SOON, || {
        namespaces.split(' ').all(|namespace| !is_held(namespace))
    });
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains("weir-lab"));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn nothing_is_left_after_a_panic() {
    grief(None);
}

#[test]
fn nothing_is_left_after_a_kill() {
    grief(Some(Signal::SIGKILL));
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    grief(Some(Signal::SIGINT));
}

/// Whether any thread is in the namespace (such as `net:[4026532000]`), or any process has it open.
fn is_held(namespace: &str) -> bool {
    let links = |directory: String| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect::<Vec<_>>()
    };
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap());
    processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).any(|process| {
        let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let inside = threads.flat_map(|thread| links(format!("{}/ns", thread.path().display())));
        inside.chain(links(format!("/proc/{process}/fd"))).any(|link| link == Path::new(namespace))
    })
}

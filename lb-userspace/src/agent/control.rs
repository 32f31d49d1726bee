//! Takes orders from the command line: a Unix socket that only the agent's own user may open.
//!
//! One line of JSON, one line back. Decides nothing: the agent's loop does, which gets every request with
//! the way back for its answer. Clients are few, their lines bounded, their time limited.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::report::control::{Answer, MAX_LINE_BYTES, PATIENCE, Request, SOCKET, socket_name};

/// Clients that are served at once; others wait.
const MAX_CLIENTS: usize = 8;

/// Requests that wait for the loop.
pub const MAX_WAITING: usize = MAX_CLIENTS;

/// How long a client may take to say what it wants.
const LINE_TIME: Duration = Duration::from_secs(2);

/// Rest after a client could not be accepted: the process is out of files.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// A request, and the way back for its answer.
#[derive(Debug)]
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Answer>,
}

/// Makes the socket, in the place of that of an agent that is gone. To be called by an agent that holds
/// the lock, within the runtime.
///
/// # Errors
/// The state directory allows no socket.
pub fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    const FRESH: &str = "agent.sock.new";
    let (folder, fresh) = (File::open(state_dir)?, state_dir.join(FRESH));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Under its name it never has other rights than these.
    let listener = UnixListener::bind(socket_name(&folder, FRESH))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    fs::rename(&fresh, state_dir.join(SOCKET))?;
    Ok(listener)
}

/// Serves for ever. Requests go to `asked`, up to [`MAX_WAITING`] of them.
pub async fn run(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client of the control socket could not be accepted");
                sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let asked = asked.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &asked).await {
                tracing::debug!(%error, "a client of the control socket went away");
            }
            drop(place);
        });
    }
}

async fn serve(stream: UnixStream, asked: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(from.take(MAX_LINE_BYTES));
    timeout(LINE_TIME, reader.read_until(b'\n', &mut line)).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => answer(request, asked).await,
        Err(error) => Answer::refused(
            format!("the agent does not understand the request: {error}"),
            "use the `weir` of the agent's own version",
        ),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(LINE_TIME, to.write_all(&line)).await?
}

async fn answer(request: Request, asked: &mpsc::Sender<Asked>) -> Answer {
    let (sender, receiver) = oneshot::channel();
    let answered = async {
        asked.send(Asked { request, answer: sender }).await.ok()?;
        receiver.await.ok()
    };
    // Before the client itself gives up.
    match timeout(PATIENCE - LINE_TIME, answered).await {
        Ok(Some(answer)) => answer,
        _ => Answer::refused("the agent is busy or ends", "look at `weir status`, then try again"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream as StdStream,
        path::PathBuf,
        thread,
    };

    use super::*;
    use crate::{model::Drainable, report::control::ask};

    fn drain() -> Request {
        Request::Drain { what: Drainable::Forwarding("worker-1".into()), within_ms: None }
    }

    /// Serves in a state directory with a name of this length, and answers every request with `changed`.
    fn serve_in(state_dir: PathBuf) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let guard = runtime.enter();
        let listener = bind(&state_dir).unwrap();
        drop(guard);
        let (sender, mut receiver) = mpsc::channel::<Asked>(MAX_WAITING);
        runtime.spawn(run(listener, sender));
        runtime.spawn(async move {
            while let Some(asked) = receiver.recv().await {
                let _ = asked.answer.send(Answer::done(asked.request == drain()));
            }
        });
        runtime
    }

    #[test]
    fn a_request_reaches_the_agent_and_its_answer_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask(dir.path(), &drain()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let agent = serve_in(dir.path().into());
        assert_eq!(ask(dir.path(), &drain()).unwrap(), Answer::done(true));
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(agent);
        let error = ask(dir.path(), &drain()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "the file stays");
        let _agent = serve_in(dir.path().into());
        assert!(ask(dir.path(), &drain()).is_ok(), "the next agent takes its place");
    }

    #[test]
    fn a_state_directory_may_have_a_longer_name_than_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let _agent = serve_in(deep.clone());
        assert_eq!(ask(&deep, &drain()).unwrap(), Answer::done(true));
    }

    #[test]
    fn clients_that_talk_nonsense_or_nothing_keep_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let _agent = serve_in(dir.path().into());
        let connect = || StdStream::connect(dir.path().join(SOCKET)).unwrap();
        let endless = vec![b'x'; MAX_LINE_BYTES as usize + 1];
        for text in [&b"{}\n"[..], b"{\"command\":\"drain\",\"what\":\"pod/x\"}\n", &endless] {
            let mut client = connect();
            client.write_all(text).unwrap();
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            assert!(answer.contains("refused"), "{answer}");
        }
        // All places taken by clients that say nothing, until their time is up.
        let silent: Vec<_> = (0..MAX_CLIENTS).map(|_| connect()).collect();
        let state_dir = dir.path().to_owned();
        let waits = thread::spawn(move || ask(&state_dir, &drain()).unwrap());
        assert_eq!(waits.join().unwrap(), Answer::done(true));
        drop(silent);
    }

    #[test]
    fn a_loop_that_is_gone_is_told_to_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let guard = runtime.enter();
        let listener = bind(dir.path()).unwrap();
        drop(guard);
        runtime.spawn(run(listener, mpsc::channel(1).0));
        let answer = ask(dir.path(), &drain()).unwrap();
        assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
    }
}

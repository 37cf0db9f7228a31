//! A way to a registry that lets through so many bytes and then holds everything: a test stops a pull exactly where it wants.
//!
//! Threads and plain TCP; what is in the bytes is nobody's business here.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// Copied at once; the gate may close in the middle of it.
const CHUNK: usize = 16 << 10;

pub struct Gate {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Bytes that answers may still have; none is without limit.
    left: Option<u64>,
    /// Bytes of answers that went through since the last time.
    passed: u64,
    /// An answer waits for the gate to open.
    held: bool,
    /// Connections of earlier rounds end.
    round: u64,
    connections: Vec<TcpStream>,
}

impl Gate {
    /// A gate to `registry` on a free port of the loopback, open.
    pub fn new(registry: SocketAddr) -> Gate {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { left: None, passed: 0, held: false, round: 0, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        // It ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, registry) = (client.unwrap(), TcpStream::connect(registry).unwrap());
                let (questions, answers) =
                    ((client.try_clone().unwrap(), registry.try_clone().unwrap()), (registry, client));
                thread::spawn(move || copy(questions, |_| true));
                let shared = Arc::clone(&accepting);
                let round = shared.add(answers.1.try_clone().unwrap());
                thread::spawn(move || copy(answers, |count| shared.pass(count, round)));
            }
        });
        Gate { address, shared }
    }

    /// From now on, lets through `left` bytes of answers, or all. Connections that are there end.
    pub fn set(&self, left: Option<u64>) {
        let mut state = self.shared.state.lock().unwrap();
        for connection in std::mem::take(&mut state.connections) {
            // The other side may have closed it.
            let _ = connection.shutdown(Shutdown::Both);
        }
        *state = State { left, passed: 0, held: false, round: state.round + 1, connections: Vec::new() };
        self.shared.changed.notify_all();
    }

    /// Waits until all that may go through did and something waits; false after the time is up.
    pub fn is_held_within(&self, time: Duration) -> bool {
        let state = self.shared.state.lock().unwrap();
        self.shared.changed.wait_timeout_while(state, time, |state| !state.held).unwrap().0.held
    }

    /// Bytes of answers that went through since [`Gate::set`].
    pub fn passed(&self) -> u64 {
        self.shared.state.lock().unwrap().passed
    }
}

impl Shared {
    /// Takes in a connection, and tells its round.
    fn add(&self, connection: TcpStream) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.connections.push(connection);
        state.round
    }

    /// Waits for the permission to let bytes through; false ends the connection.
    fn pass(&self, count: u64, round: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        while state.round == round {
            match &mut state.left {
                Some(left) if *left < count => {
                    state.held = true;
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap();
                }
                left => {
                    if let Some(left) = left {
                        *left -= count;
                    }
                    state.passed += count;
                    return true;
                }
            }
        }
        false
    }
}

/// Copies until either side ends or `may_pass` says no.
fn copy((mut from, mut to): (TcpStream, TcpStream), may_pass: impl Fn(u64) -> bool) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // One byte too many for the gate holds the whole piece.
        if !may_pass(count as u64) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

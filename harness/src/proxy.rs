//! A TCP proxy whose connections fail on demand.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// The most bytes passed on at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// The longest delay of [`draw`], in milliseconds.
const DELAY_MS_MAX: u64 = 5;

/// The fault of one direction of a connection, once `after` bytes have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "`after` and `time` are explained beside their faults"
)]
pub enum Fault {
    /// No fault.
    Pass,
    /// Every chunk takes `time`, until the connection ends.
    Delay { after: u64, time: Duration },
    /// The connection ends, in both directions.
    Cut { after: u64 },
    /// Nothing more is read: the sender meets a full window.
    Stall { after: u64 },
    /// The rest is read and dropped, including its end: the connection is half-open.
    Swallow { after: u64 },
}

/// The faults of a connection: of the client's direction, and of the server's.
pub type Faults = [Fault; 2];

/// No fault.
pub const SOUND: Faults = [Fault::Pass; 2];

/// Draws the faults of a connection from random bits: one of its directions fails, within `after_max` bytes.
pub fn draw(bits: u64, after_max: u64) -> Faults {
    let after = (bits >> 8) % after_max;
    let fault = match bits % 4 {
        0 => Fault::Delay {
            after,
            time: Duration::from_millis(1 + (bits >> 8) % DELAY_MS_MAX),
        },
        1 => Fault::Cut { after },
        2 => Fault::Stall { after },
        _ => Fault::Swallow { after },
    };
    if bits & 0x80 == 0 {
        [fault, Fault::Pass]
    } else {
        [Fault::Pass, fault]
    }
}

/// A proxy in front of one server. Its connections end when it is dropped.
pub struct Proxy {
    /// Its address.
    pub address: SocketAddr,
    shared: Arc<ProxyState>,
    accepting: JoinHandle<()>,
}

struct ProxyState {
    server: Mutex<SocketAddr>,
    plan: Box<dyn Fn(u64) -> Faults + Send + Sync>,
    vanished: watch::Sender<bool>,
    /// How many connections the server has closed.
    closed_by_server: watch::Sender<u64>,
    /// How many connections were opened.
    opened: watch::Sender<u64>,
}

impl Proxy {
    /// Passes connections on to `server`. `plan` gives the faults of the nth, counted from 0.
    pub async fn start(
        server: SocketAddr,
        plan: impl Fn(u64) -> Faults + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ProxyState {
            server: Mutex::new(server),
            plan: Box::new(plan),
            vanished: watch::Sender::new(false),
            closed_by_server: watch::Sender::new(0),
            opened: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends new connections elsewhere.
    pub fn redirect(&self, server: SocketAddr) {
        *self.shared.server() = server;
    }

    /// From now on nothing gets through, and neither side notices.
    pub fn vanish(&self) {
        self.shared.vanished.send_replace(true);
    }

    /// How many connections the server has closed, as it increases.
    pub fn closed_by_server(&self) -> watch::Receiver<u64> {
        self.shared.closed_by_server.subscribe()
    }

    /// How many connections have been opened.
    pub fn opened(&self) -> u64 {
        *self.shared.opened.borrow()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ProxyState {
    fn server(&self) -> std::sync::MutexGuard<'_, SocketAddr> {
        // An address is never half written.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let mut number = 0;
        shared.opened.send_modify(|opened| {
            number = *opened;
            *opened += 1;
        });
        connections.spawn(connect(client, number, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, number: u64, shared: Arc<ProxyState>) {
    let server = *shared.server();
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    // Small data must not wait for a TCP ack.
    _ = client.set_nodelay(true);
    _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let [request, response] = (shared.plan)(number);
    let pump = |from, to, fault| Pump {
        from,
        to,
        fault,
        passed: 0,
        vanished: shared.vanished.subscribe(),
    };
    let requests = pump(from_client, to_server, request).run();
    let responses = async {
        let ended = pump(from_server, to_client, response).run().await;
        shared.closed_by_server.send_modify(|closed| *closed += 1);
        ended
    };
    // A direction that ends cleanly leaves the other open; one that breaks does not.
    _ = tokio::try_join!(requests, responses);
}

/// One direction of a connection.
struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    fault: Fault,
    passed: u64,
    vanished: watch::Receiver<bool>,
}

impl Pump {
    /// Passes data on until it ends, cleanly or not.
    async fn run(mut self) -> io::Result<OwnedWriteHalf> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let left = self.left();
            if left == 0 {
                match self.fault {
                    Fault::Cut { .. } | Fault::Delay { .. } => {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    Fault::Stall { .. } => std::future::pending().await,
                    Fault::Pass | Fault::Swallow { .. } => {}
                }
            }
            let bytes = self.from.read(&mut chunk).await?;
            if bytes == 0 {
                if !self.swallows() {
                    self.to.shutdown().await?;
                }
                // Both halves are kept until the other direction has ended.
                return Ok(self.to);
            }
            if let Fault::Delay { time, .. } = self.fault {
                sleep(time).await;
            }
            let through = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.passed += through as u64;
            if !*self.vanished.borrow() {
                self.to.write_all(&chunk[..through]).await?;
            }
        }
    }

    /// How many bytes may still pass.
    fn left(&self) -> u64 {
        match self.fault {
            Fault::Pass => u64::MAX,
            Fault::Delay { after, .. }
            | Fault::Cut { after }
            | Fault::Stall { after }
            | Fault::Swallow { after } => after - self.passed,
        }
    }

    fn swallows(&self) -> bool {
        *self.vanished.borrow() || matches!(self.fault, Fault::Swallow { .. }) && self.left() == 0
    }
}

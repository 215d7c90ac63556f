//! Listening: one thread, so many connections and no more, each with one request and a deadline for all that a client says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower_service::Service as _;
use tracing::{debug, info, warn};

use super::callers::Callers;
use super::problem::Problem;
use super::requests::Requests;
use super::routes;
use crate::controller::Access;
use crate::domain::code::Code;
use crate::head::authority::Authority;
use crate::retry::drawn;

/// Connections at once. More wait in the backlog of the kernel.
const CONNECTIONS_MAX: usize = 256;

/// Of those, how many may follow a stream or stand in a queue.
const FOLLOWERS_MAX: usize = 128;

/// How long a client may take to say what it wants: the head, and then the body.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long bytes may lie unacknowledged before the kernel gives a connection up, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 30_000;

/// The pause before the address is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// What all requests work with.
pub(super) struct Shared {
    pub(super) access: Access,
    pub(super) callers: Callers,
    pub(super) requests: Requests,
    followers: Arc<Semaphore>,
    gate: Mutex<Authority>,
}

impl Shared {
    /// Returns the gate; its floods are its own, apart from those of the bus.
    pub(super) fn gate(&self) -> MutexGuard<'_, Authority> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for one who follows a stream or stands in a queue.
    ///
    /// # Errors
    /// When there is none: others need connections, too.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.followers.clone().try_acquire_owned().map_err(|_| {
            let what = "too many follow a stream or stand in a queue already";
            Problem::new(Code::BUSY, what).status(StatusCode::SERVICE_UNAVAILABLE)
        })
    }
}

/// Serves HTTP on an address of the loopback until the controller ends, on a thread of its own.
///
/// # Errors
/// When the controller's folder cannot be used. An address that is taken is no error: it is tried again.
pub fn open(address: SocketAddr, access: Access) -> anyhow::Result<()> {
    let (fleet, controller) = (access.fleet().clone(), access.controller().clone());
    let ring = access.ring().clone();
    let gate = Authority::new(fleet, controller, ring, access.revoked().to_vec());
    let shared = Shared {
        callers: Callers::load(&access),
        requests: Requests::open(access.folder())?,
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        gate: Mutex::new(gate),
        access,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("http".to_owned());
    // It ends with the controller, whose process does.
    drop(thread.spawn(move || runtime.block_on(serve(address, Arc::new(shared))))?);
    Ok(())
}

async fn serve(address: SocketAddr, shared: Arc<Shared>) {
    let router = routes::router(shared.clone());
    let accepting = async {
        let listener = listen(address).await;
        info!(%address, "serves HTTP");
        accept(listener, router).await;
    };
    tokio::select! {
        () = accepting => {}
        () = shared.access.ended() => {}
    }
}

/// Serves whoever connects, so many at once.
pub(super) async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(one(stream, router.clone(), place));
            }
            Err(error) => {
                warn!(%error, "a connection was not accepted");
                // Out of descriptors, most likely: others have to end first.
                sleep(drawn(LISTEN_AGAIN / 2..=LISTEN_AGAIN)).await;
            }
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut is_told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if is_told => debug!(%address, %error, "still not listening"),
            Err(error) => {
                warn!(%address, %error, "cannot listen for HTTP yet");
                is_told = true;
            }
        }
        sleep(drawn(LISTEN_AGAIN / 2..=LISTEN_AGAIN)).await;
    }
}

/// Serves the one request of a connection.
async fn one(stream: TcpStream, router: Router, _place: OwnedSemaphorePermit) {
    // Whoever stopped reading a stream would hold its place for ever.
    let bounded = rustix::net::sockopt::set_tcp_user_timeout(stream.as_fd(), UNACKNOWLEDGED_MS);
    if bounded.is_err() || stream.set_nodelay(true).is_err() {
        return; // It is gone already.
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            let response: Response = router.call(request).await?;
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = http1::Builder::new();
    // Clients are beside us: a connection costs them nothing, and none is left to end.
    server.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    server.max_buf_size(HEAD_BYTES_MAX);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection ended early");
    }
}

/// Reads a body of at most so many bytes, in time.
///
/// # Errors
/// When it is larger, or does not come. Nothing of it was looked at.
pub(super) async fn whole_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(Code::TOO_LARGE, format!("the body has more than {bytes_max} bytes"));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match timeout(BODY_WITHIN, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_of_length(&error) => Err(too_large()),
        Ok(Err(error)) => Err(Problem::new(Code::USAGE, format!("the body broke off: {error}"))),
        Err(_) => {
            let what = format!("the body did not come within {} s", BODY_WITHIN.as_secs());
            let problem = Problem::new(Code::USAGE, what);
            Err(problem.status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

fn is_of_length(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

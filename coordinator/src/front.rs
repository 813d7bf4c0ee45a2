//! The door of a coordinator among several: it answers what it leads; while another leads, calls are handed on to that one,
//! so that every coordinator's address is as good as any.
//!
//! While nobody leads, jobs are told from the store, and all else is refused with `NOT_LEADER` and when to come back. A call
//! is handed on once: two that each take the other for the leader don't play ball with it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use ingle_daemon::Shutdown;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{Channel, ConnectOptions, connect_lazy};
use ingle_daemon::tasks::describe;
use ingle_membership::Membership;
use ingle_membership::election::{self, Candidate};
use ingle_proto::{ErrorCode, Problem};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::driver::not_leader;

/// Marks a call that was handed on.
const HANDED_ON: &str = "ingle-handed-on";
/// How often the leader is looked up, and how long that may take.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_WITHIN: Duration = Duration::from_secs(2);

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// See the module. Clones are one door.
#[derive(Clone)]
pub struct Front(Arc<RwLock<Role>>);

enum Role {
    Leading(Routes),
    Following(Following),
}

/// What a coordinator that doesn't lead has.
#[derive(Clone)]
pub struct Following {
    own: String,
    tls: TlsConfig,
    leader: watch::Receiver<Option<Candidate>>,
    /// Answers from the store.
    known: Routes,
    channel: Arc<Mutex<Option<(String, Channel)>>>,
}

impl Following {
    /// Of the coordinator named `own`; `known` answers while nobody leads.
    #[must_use]
    pub fn new(own: String, tls: TlsConfig, leader: watch::Receiver<Option<Candidate>>, known: Routes) -> Self {
        Self { own, tls, leader, known, channel: Arc::default() }
    }

    async fn answer(mut self, request: Request) -> Response {
        let leader = self.leader.borrow().clone().filter(|leader| leader.id != self.own);
        match leader {
            Some(_) if request.headers().contains_key(HANDED_ON) => refused(not_leader()),
            Some(leader) => self.hand_on(&leader, request).await,
            None => {
                let Ok(response) = self.known.call(request).await;
                // Of what isn't told from the store nothing is known here: the call itself is none that doesn't exist.
                match Status::from_header_map(response.headers()) {
                    Some(status) if status.code() == Code::Unimplemented => refused(not_leader()),
                    _ => response,
                }
            }
        }
    }

    async fn hand_on(&self, leader: &Candidate, mut request: Request) -> Response {
        let mut channel = match self.channel(&leader.address) {
            Ok(channel) => channel,
            Err(words) => return refused(Problem::new(ErrorCode::NotLeader, words)),
        };
        request.headers_mut().insert(HANDED_ON, http::HeaderValue::from_static("1"));
        let answered = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let away = |how: &str, error: &dyn std::error::Error| {
            let words = format!("{} leads, at {}, and {how}: {}", leader.id, leader.address, describe(error));
            Problem::new(ErrorCode::NotLeader, words).retry_after(Duration::from_secs(1))
        };
        match answered.await {
            Ok(response) => {
                let broken = away("broke off", &std::io::Error::from(std::io::ErrorKind::ConnectionReset));
                response.map(|body| Body::new(Relayed { body, broken: Some(broken) }))
            }
            Err(error) => refused(away("doesn't answer", &error)),
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, String> {
        let mut kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((to, channel)) = &*kept
            && to == address
        {
            return Ok(channel.clone());
        }
        let channel =
            connect_lazy(address, &self.tls, &ConnectOptions::default()).map_err(|error| error.to_string())?;
        *kept = Some((address.to_owned(), channel.clone()));
        Ok(channel)
    }
}

impl Front {
    /// Of one that leads.
    #[must_use]
    pub fn leading(routes: Routes) -> Self {
        Self(Arc::new(RwLock::new(Role::Leading(routes))))
    }

    /// Of one that doesn't, yet.
    #[must_use]
    pub fn following(following: Following) -> Self {
        Self(Arc::new(RwLock::new(Role::Following(following))))
    }

    /// From now on it leads.
    pub fn lead(&self, routes: Routes) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Role::Leading(routes);
    }
}

impl<B> Service<http::Request<B>> for Front
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<ingle_daemon::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let request = request.map(Body::new);
        let role = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match &*role {
            Role::Leading(routes) => {
                let answered = routes.clone().call(request);
                Box::pin(answered)
            }
            Role::Following(following) => {
                let following = following.clone();
                Box::pin(async move { Ok(following.answer(request).await) })
            }
        }
    }
}

/// The leader's answer on its way. One that breaks off ends with a status that says so: else callers would learn of a broken
/// connection that isn't theirs.
struct Relayed {
    body: Body,
    broken: Option<Problem>,
}

impl http_body::Body for Relayed {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Err(error)) => {
                tracing::debug!(%error, "an answer of the leader broke off");
                let broken = self.broken.take().map(|problem| {
                    let (mut head, ()) = Status::from(problem).into_http::<()>().into_parts();
                    head.headers.remove(http::header::CONTENT_TYPE);
                    Ok(http_body::Frame::trailers(head.headers))
                });
                self.body = Body::empty();
                Poll::Ready(broken)
            }
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn refused(problem: Problem) -> Response {
    Status::from(problem).into_http()
}

/// Keeps `leader` at whoever leads, until shutdown.
pub async fn follow_leader(members: Arc<dyn Membership>, leader: watch::Sender<Option<Candidate>>, shutdown: Shutdown) {
    loop {
        match tokio::time::timeout(LOOK_WITHIN, election::leader(&*members)).await {
            Ok(Ok(found)) => {
                let found = found.map(|(candidate, _)| candidate);
                leader.send_if_modified(|known| {
                    let changed = *known != found;
                    if changed {
                        tracing::info!(leader = found.as_ref().map(|leader| leader.id.as_str()), "leader");
                        known.clone_from(&found);
                    }
                    changed
                });
            }
            // Whom we knew may lead on.
            Ok(Err(error)) => tracing::debug!(%error, "who leads can't be looked up"),
            Err(_) => tracing::debug!("who leads can't be looked up: no answer"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

//! The door of a coordinator among several: it answers what it leads; while another leads, calls are handed on to that one,
//! so that every coordinator's address is as good as any.
//!
//! While nobody leads, jobs are told from the store, and all else waits a while for who leads next; then it is refused with
//! `NOT_LEADER` and when to come back. A call is handed on by whoever knows more: the leader of a moment ago hands it to the next
//! one. But at most three times: two that each take the other for the leader don't play ball with it. One that nobody took yet,
//! since the leader has just gone, is handed to the next.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
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
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::driver::not_leader;

/// Marks a call that was handed on.
const HANDED_ON: &str = "ingle-handed-on";
/// How often a call is handed on.
const HOPS_MAX: u8 = 3;
/// How often the leader is looked up, and how long that may take.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// How long a call waits for somebody to lead: a dead leader's lease of four seconds, and what the next one needs.
const LED_WITHIN: Duration = Duration::from_secs(8);
/// How often it looks meanwhile.
const LED_POLL: Duration = Duration::from_millis(50);
/// What is told from the store while nobody leads.
const TOLD: [&str; 4] =
    ["/ingle.v1.Jobs/GetJob", "/ingle.v1.Jobs/ListJobs", "/ingle.v1.Jobs/ListItems", "/ingle.v1.Jobs/WatchJob"];

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

    /// Answers by whoever leads, soon. `front`: we may be the one.
    async fn answer(mut self, mut request: Request, front: &Front) -> Response {
        let hops = hops(&request);
        let told = TOLD.contains(&request.uri().path());
        let end = Instant::now() + LED_WITHIN;
        loop {
            if let Some(mut routes) = front.routes() {
                let Ok(response) = routes.call(request).await;
                return response;
            }
            let leader = self.leader.borrow().clone().filter(|leader| leader.id != self.own);
            match leader {
                Some(_) if hops >= HOPS_MAX => return refused(not_leader()),
                Some(leader) => match self.hand_on(&leader, request, hops + 1).await {
                    Ok(response) => return response,
                    Err((Some(untouched), _)) if Instant::now() < end => request = untouched,
                    Err((_, problem)) => return refused(problem),
                },
                None if told || Instant::now() >= end => return self.tell(request).await,
                None => {}
            }
            tokio::time::sleep(LED_POLL).await;
        }
    }

    /// What the store says, until somebody leads: a watcher of what stands still would wait forever.
    async fn tell(&mut self, request: Request) -> Response {
        let mut leader = self.leader.clone();
        let own = self.own.clone();
        let Ok(response) = self.known.call(request).await;
        // Of what isn't told from the store nothing is known here: the call itself is none that doesn't exist.
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() == Code::Unimplemented => refused(not_leader()),
            _ => {
                let led = Box::pin(async move {
                    // Who looks is gone only when this coordinator leads or ends: both end the answer in other ways.
                    if leader.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.id != own)).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                });
                response.map(|body| Body::new(Told { body, led }))
            }
        }
    }

    /// The leader's answer; or why there is none, and the request if nobody has seen anything of it.
    async fn hand_on(
        &self,
        leader: &Candidate,
        request: Request,
        hops: u8,
    ) -> Result<Response, (Option<Request>, Problem)> {
        let mut channel = match self.channel(&leader.address) {
            Ok(channel) => channel,
            Err(words) => return Err((None, Problem::new(ErrorCode::NotLeader, words))),
        };
        let (head, body) = request.into_parts();
        let lent = Lent { body: Arc::new(Mutex::new(body)), touched: Arc::default() };
        let mut handed = http::Request::from_parts(head.clone(), Body::new(lent.clone()));
        handed.headers_mut().insert(HANDED_ON, http::HeaderValue::from(u16::from(hops)));
        let answered = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(handed).await
        };
        let away = |how: &str, error: &dyn std::error::Error| {
            let words = format!("{} leads, at {}, and {how}: {}", leader.id, leader.address, describe(error));
            Problem::new(ErrorCode::NotLeader, words).retry_after(Duration::from_secs(1))
        };
        match answered.await {
            Ok(response) => {
                let broken = away("broke off", &std::io::Error::from(std::io::ErrorKind::ConnectionReset));
                Ok(response.map(|body| Body::new(Relayed { body, broken: Some(broken) })))
            }
            Err(error) => {
                let body = lent.back();
                Err((body.map(|body| http::Request::from_parts(head, body)), away("doesn't answer", &error)))
            }
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

    /// What it leads with, if it does.
    fn routes(&self) -> Option<Routes> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Role::Leading(routes) => Some(routes.clone()),
            Role::Following(_) => None,
        }
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
                let (following, front) = (following.clone(), self.clone());
                Box::pin(async move { Ok(following.answer(request, &front).await) })
            }
        }
    }
}

/// How often a request was handed on already.
fn hops(request: &Request) -> u8 {
    let said = request.headers().get(HANDED_ON).map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
    // Whatever it says, it was.
    said.map_or(0, |hops| hops.unwrap_or(HOPS_MAX))
}

/// A request's body that can be had back as long as nobody has looked at it.
#[derive(Clone)]
struct Lent {
    body: Arc<Mutex<Body>>,
    touched: Arc<AtomicBool>,
}

impl Lent {
    fn back(self) -> Option<Body> {
        let untouched = !self.touched.load(Ordering::Acquire);
        let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        untouched.then(|| std::mem::replace(&mut *body, Body::empty()))
    }
}

impl http_body::Body for Lent {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        self.touched.store(true, Ordering::Release);
        Pin::new(&mut *self.body.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }
}

/// An answer from the store. Once somebody leads it ends with a status that says so, and whoever asked asks again.
struct Told {
    body: Body,
    led: BoxFuture<'static, ()>,
}

impl http_body::Body for Told {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                ready!(self.led.as_mut().poll(context));
                self.led = Box::pin(std::future::pending());
                self.body = Body::empty();
                let words = "a coordinator leads now, and tells what changes: ask again";
                Poll::Ready(Some(Ok(trailers(Problem::new(ErrorCode::NotLeader, words)))))
            }
            told => told,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn trailers(problem: Problem) -> http_body::Frame<bytes::Bytes> {
    let (mut head, ()) = Status::from(problem).into_http::<()>().into_parts();
    head.headers.remove(http::header::CONTENT_TYPE);
    http_body::Frame::trailers(head.headers)
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
                let broken = self.broken.take().map(|problem| Ok(trailers(problem)));
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

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    /// A body that says nothing and doesn't end.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
            Poll::Pending
        }
    }

    fn following() -> (Following, watch::Sender<Option<Candidate>>) {
        let (told, leader) = watch::channel(None);
        (Following::new("c-own".into(), TlsConfig::default(), leader, Routes::default()), told)
    }

    fn ask(path: &str) -> Request {
        http::Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    fn code(response: &Response) -> Option<Code> {
        Status::from_header_map(response.headers()).map(|status| status.code())
    }

    #[tokio::test]
    async fn a_watcher_of_the_store_is_sent_on_once_somebody_leads() {
        let (told, mut leader) = watch::channel(None);
        let led =
            Box::pin(async move { leader.wait_for(|leader: &Option<u8>| leader.is_some()).await.map_or((), drop) });
        let mut body = Body::new(Told { body: Body::new(Silent), led });
        let mut next = std::pin::pin!(std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)));
        assert!(futures::poll!(&mut next).is_pending());
        told.send_replace(Some(1));
        let frame = next.await.unwrap().unwrap();
        let status = Status::from_header_map(frame.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn calls_wait_for_who_leads_next() {
        let (waiting, _told) = following();
        let mut front = Front::following(waiting);
        let asked = front.call(ask("/ingle.v1.Inference/Embed"));
        let mut asked = std::pin::pin!(asked);
        assert!(futures::poll!(&mut asked).is_pending());
        front.lead(Routes::default());
        // Routes without a service say that they have none: it was they who answered.
        assert_eq!(code(&asked.await.unwrap()), Some(Code::Unimplemented));
    }

    #[tokio::test]
    async fn a_call_is_handed_on_a_few_times_and_no_more() {
        let (follower, told) = following();
        let mut front = Front::following(follower);
        let gone = Candidate { id: "c-gone".into(), incarnation: "i".into(), address: "127.0.0.1:1".into() };
        told.send_replace(Some(gone));
        let handed = |times: &'static str| {
            let mut request = ask("/ingle.v1.Inference/Embed");
            request.headers_mut().insert(HANDED_ON, http::HeaderValue::from_static(times));
            request
        };
        for times in ["3", "4", "300", "often"] {
            assert_eq!(code(&front.call(handed(times)).await.unwrap()), Some(Code::Unavailable), "{times}");
        }
        // The leader of a moment ago knows the next one, and tries to reach it.
        let again = front.call(handed("2"));
        let mut again = std::pin::pin!(again);
        assert!(futures::poll!(&mut again).is_pending());
        front.lead(Routes::default());
        assert_eq!(code(&again.await.unwrap()), Some(Code::Unimplemented));
    }

    #[tokio::test]
    async fn what_the_leader_of_before_never_saw_goes_to_the_next() {
        let (waiting, told) = following();
        let mut front = Front::following(waiting);
        // Nobody listens there.
        let gone = Candidate { id: "c-gone".into(), incarnation: "i".into(), address: "127.0.0.1:1".into() };
        told.send_replace(Some(gone));
        let asked = front.call(ask("/ingle.v1.Inference/Embed"));
        let next = front.clone();
        let (answered, ()) = tokio::join!(asked, async move {
            tokio::time::sleep(2 * LED_POLL).await;
            next.lead(Routes::default());
        });
        assert_eq!(code(&answered.unwrap()), Some(Code::Unimplemented));
    }

    #[test]
    fn a_body_that_was_looked_at_is_not_lent_again() {
        let lent = Lent { body: Arc::new(Mutex::new(Body::new(Silent))), touched: Arc::default() };
        assert!(lent.clone().back().is_some());
        let mut other = lent.clone();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let _ = Pin::new(&mut other).poll_frame(&mut context);
        assert!(lent.back().is_none());
    }
}

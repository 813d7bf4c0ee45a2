//! The stable error codes: carried in status details as `ErrorInfo.reason`, one page each in `docs/errors`.

use tonic::Code;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $grpc:ident, $retry:literal;)*) => {
        /// A stable error code. New ones are added, none is renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it travels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The gRPC status it is carried by.
            #[must_use]
            pub const fn grpc(self) -> Code {
                match self { $(Self::$name => Code::$grpc,)* }
            }

            /// Whether trying again may help.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }

            /// The code of this text, if we know it.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// A field is missing, out of range or malformed.
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, false;
    /// A path leaves its root, holds `..`, NUL, or a component over 255 bytes.
    PathRefused = "PATH_REFUSED", InvalidArgument, false;
    /// No such job.
    JobNotFound = "JOB_NOT_FOUND", NotFound, false;
    /// The job is in a state that this can't be done in.
    JobState = "JOB_STATE", FailedPrecondition, false;
    /// The idempotency key named another specification.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", AlreadyExists, false;
    /// No such node.
    NodeNotFound = "NODE_NOT_FOUND", NotFound, false;
    /// No node sees a model of that name, or several would do.
    ModelNotFound = "MODEL_NOT_FOUND", NotFound, false;
    /// The model's files are malformed or of a kind that can't be run.
    ModelUnusable = "MODEL_UNUSABLE", FailedPrecondition, false;
    /// The model fits on no node.
    ModelDoesNotFit = "MODEL_DOES_NOT_FIT", FailedPrecondition, false;
    /// No node is ready for this now.
    NoNode = "NO_NODE", Unavailable, true;
    /// No such export.
    ExportNotFound = "EXPORT_NOT_FOUND", NotFound, false;
    /// The export may not be written.
    ExportReadOnly = "EXPORT_READ_ONLY", FailedPrecondition, false;
    /// No such object.
    ObjectNotFound = "OBJECT_NOT_FOUND", NotFound, false;
    /// The object is a symlink, FIFO, socket or device, or a directory where a file is needed.
    ObjectKind = "OBJECT_KIND", FailedPrecondition, false;
    /// The object changed while it was read.
    ObjectChanged = "OBJECT_CHANGED", Aborted, true;
    /// So many known documents are missing at once that nothing is deleted.
    DocumentsVanished = "DOCUMENTS_VANISHED", FailedPrecondition, false;
    /// The NAS refuses: permission.
    StorageDenied = "STORAGE_DENIED", PermissionDenied, false;
    /// The NAS is full or over quota.
    StorageFull = "STORAGE_FULL", ResourceExhausted, true;
    /// The NAS takes no change now: its file system has become read-only.
    StorageReadOnly = "STORAGE_READ_ONLY", Unavailable, true;
    /// The NAS does not answer, or the connection broke.
    StorageUnavailable = "STORAGE_UNAVAILABLE", Unavailable, true;
    /// The NAS answered with something impossible.
    StorageProtocol = "STORAGE_PROTOCOL", Unavailable, true;
    /// A name is taken by something that must not be replaced.
    NameTaken = "NAME_TAKEN", AlreadyExists, false;
    /// The bytes are not those of the digest.
    DigestMismatch = "DIGEST_MISMATCH", DataLoss, true;
    /// The result was made from a visible file that another job has replaced since: it is made again.
    ResultOutdated = "RESULT_OUTDATED", Aborted, true;
    /// The sender's epoch is older than the highest seen.
    EpochStale = "EPOCH_STALE", FailedPrecondition, false;
    /// The attempt is no longer the batch's current one.
    AttemptStale = "ATTEMPT_STALE", Aborted, false;
    /// A queue is full.
    Overloaded = "OVERLOADED", ResourceExhausted, true;
    /// The document is not of a kind this job takes.
    DocumentKind = "DOCUMENT_KIND", InvalidArgument, false;
    /// The document can't be read as what it claims to be.
    DocumentMalformed = "DOCUMENT_MALFORMED", InvalidArgument, false;
    /// The document or text is larger than the limit.
    TooLarge = "TOO_LARGE", InvalidArgument, false;
    /// The document hurt its node or failed alone too often and is set aside.
    Quarantined = "QUARANTINED", Aborted, false;
    /// A deadline passed.
    Deadline = "DEADLINE", DeadlineExceeded, true;
    /// It was cancelled.
    Cancelled = "CANCELLED", Cancelled, false;
    /// Not built yet; the message says what is.
    Unimplemented = "UNIMPLEMENTED", Unimplemented, false;
    /// Two nodes use one identity.
    IdentityInUse = "IDENTITY_IN_USE", AlreadyExists, false;
    /// Computation failed on the node.
    ComputeFailed = "COMPUTE_FAILED", Internal, true;
    /// The engine made no step for too long, and its node starts anew.
    EngineStalled = "ENGINE_STALLED", Unavailable, true;
    /// This coordinator does not lead.
    NotLeader = "NOT_LEADER", Unavailable, true;
    /// It is shutting down.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, true;
    /// The stream is no longer kept.
    StreamGone = "STREAM_GONE", NotFound, false;
    /// A membership key's condition did not hold or its lease has ended.
    LeaseNotFound = "LEASE_NOT_FOUND", NotFound, false;
    /// A defect of ours: please report it.
    Internal = "INTERNAL", Internal, false;
}

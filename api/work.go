package api

import "time"

// A Work item is the claim of one session by an environment's workers. A session
// has at most one that is not stopped.
//
//	queued ──poll, ack──▶ starting ──first heartbeat──▶ active ──stop──▶ stopping ──▶ stopped
//	   ▲                     │                             │
//	   └── no heartbeat ─────┘◀──────── lease lapsed ──────┘      stop{force} ─────▶ stopped
type Work struct {
	ID                WorkID        `json:"id"`
	Type              string        `json:"type"` // "work"
	EnvironmentID     EnvironmentID `json:"environment_id"`
	Data              WorkData      `json:"data"`
	State             WorkState     `json:"state"`
	Secret            *string       `json:"secret"` // only in the answer to a poll
	Metadata          Metadata      `json:"metadata"`
	CreatedAt         time.Time     `json:"created_at"`
	AcknowledgedAt    *time.Time    `json:"acknowledged_at"`
	StartedAt         *time.Time    `json:"started_at"`
	LatestHeartbeatAt *time.Time    `json:"latest_heartbeat_at"`
	StopRequestedAt   *time.Time    `json:"stop_requested_at"`
	StoppedAt         *time.Time    `json:"stopped_at"`
}

// WorkData says what is to be worked on.
type WorkData struct {
	Type string    `json:"type"` // "session"
	ID   SessionID `json:"id"`
}

// A WorkState is a state of a [Work] item.
type WorkState string

const (
	WorkQueued   WorkState = "queued"
	WorkStarting WorkState = "starting"
	WorkActive   WorkState = "active"
	WorkStopping WorkState = "stopping"
	WorkStopped  WorkState = "stopped"
)

// A PollRequest is the query of GET …/work/poll.
type PollRequest struct {
	Block        time.Duration // 0 answers at once; at most 999 ms
	ReclaimAfter time.Duration // re-offer items polled this long ago and never acknowledged
	WorkerID     string        // from the Anthropic-Worker-ID header; may be empty
}

const (
	PollBlockMax        = 999 * time.Millisecond
	PollReclaimDefault  = 5 * time.Second
	WorkerIDMax         = 256
	HeartbeatNone       = "NO_HEARTBEAT" // expected_last_heartbeat of the first beat
	HeartbeatConflict   = "heartbeat_precondition_failed"
	WorkersPollingSpan  = 30 * time.Second
	LeaseTTLMin         = 10 * time.Second
	LeaseTTLMax         = 10 * time.Minute
	PollReclaimMaxValue = 24 * time.Hour
)

// A WorkSecret is the JSON inside Work.Secret, base64url-encoded.
type WorkSecret struct {
	SessionsToken string `json:"sessions_token"`
}

// A HeartbeatRequest is the query of POST …/heartbeat.
type HeartbeatRequest struct {
	Expected   string        // HeartbeatNone, or the last_heartbeat of the previous answer
	DesiredTTL time.Duration // 0 leaves it to the server
}

// A Heartbeat is the answer to a heartbeat. LastHeartbeat is opaque: a worker
// echoes it byte for byte.
type Heartbeat struct {
	Type          string    `json:"type"` // "work_heartbeat"
	LastHeartbeat string    `json:"last_heartbeat"`
	LeaseExtended bool      `json:"lease_extended"`
	State         WorkState `json:"state"`
	TTLSeconds    int64     `json:"ttl_seconds"`
}

// A StopRequest is the body of POST …/stop. An empty body is a graceful stop.
type StopRequest struct {
	Force bool `json:"force"`
}

// A WorkUpdate is the body of POST …/work/{id}.
type WorkUpdate struct {
	Metadata MetadataPatch `json:"metadata"`
}

// WorkStats counts an environment's queue.
type WorkStats struct {
	Type           string     `json:"type"`    // "work_queue_stats"
	Depth          int64      `json:"depth"`   // claimable now
	Pending        int64      `json:"pending"` // polled, not yet acknowledged
	OldestQueuedAt *time.Time `json:"oldest_queued_at"`
	WorkersPolling int64      `json:"workers_polling"` // distinct worker ids in the last 30 s
}

package audit

// A Kind is one entry of the [Catalogue].
type Kind struct {
	Action string
	Means  string   // in a few words, for a person
	Must   []string // the fields, or attributes, without which a record is refused
	Own    bool     // the log writes it itself
}

// The actions. A record that says a thing is about to be done is written before
// it is done; its counterpart says what it came to.
const (
	// The plane's shore.
	PlaneStart     = "plane.start"
	PlaneStop      = "plane.stop"
	APIRequest     = "api.request"
	APIAnswer      = "api.answer"
	AuthRefused    = "auth.refused"
	Approval       = "approval"
	PolicyChange   = "policy.change"
	KeyFirst       = "key.first"
	WorkClaimed    = "work.claimed"
	WorkLapsed     = "work.lapsed"
	LeaseRefused   = "lease.refused"
	SessionStopped = "session.stopped"
	EdgeAuthority  = "edge.authority"

	CredentialRefresh = "credential.refresh"
	CredentialHandOut = "credential.hand_out"

	// Tunnels and identities of workloads: the plane's shore too.
	TunnelCreate             = "tunnel.create"
	TunnelArchive            = "tunnel.archive"
	TunnelTokenReveal        = "tunnel.token.reveal"
	TunnelTokenRotate        = "tunnel.token.rotate"
	TunnelTokenCreate        = "tunnel.token.create"
	TunnelTokenRevoke        = "tunnel.token.revoke"
	TunnelCertificateAdd     = "tunnel.certificate.add"
	TunnelCertificateArchive = "tunnel.certificate.archive"
	FederationGrant          = "federation.grant"
	FederationRefused        = "federation.refused"
	ConnectorCall            = "connector.call"
	ConnectorAnswer          = "connector.answer"

	// The field's shore.
	WorkerStart    = "worker.start"
	WorkerStop     = "worker.stop"
	ConfigChange   = "config.change"
	LeaseTaken     = "lease.taken"
	LeaseLost      = "lease.lost"
	LeaseReleased  = "lease.released"
	BoxStart       = "box.start"
	BoxStop        = "box.stop"
	BoxFreeze      = "box.freeze"
	BoxThaw        = "box.thaw"
	BoxCheckpoint  = "box.checkpoint"
	BoxRestore     = "box.restore"
	LimitHit       = "limit.hit"
	PoolFill       = "pool.fill"
	PoolClaim      = "pool.claim"
	ToolStart      = "tool.start"
	ToolEnd        = "tool.end"
	ToolDenied     = "tool.denied"
	ShellStart     = "shell.start"
	ShellEnd       = "shell.end"
	EgressDecision = "egress.decision"
	EgressEnd      = "egress.end"
	EgressPolicy   = "egress.policy"
	EgressLost     = "egress.lost"
	CredentialUse  = "credential.use"
	KeyRead        = "key.read"

	// A gateway's: the field's end of a tunnel.
	GatewayStart = "gateway.start"
	GatewayStop  = "gateway.stop"
	MCPCall      = "mcp.call"
	MCPAnswer    = "mcp.answer"
	MCPRefused   = "mcp.refused"

	// The log's own, which all begin with ownPrefix.
	logSegment    = "audit.segment"
	logCheckpoint = "audit.checkpoint"
	logRecovered  = "audit.recovered"
	logResumed    = "audit.resumed"
	logDropped    = "audit.dropped"
	logHold       = "audit.hold"
	logRelease    = "audit.release"
	logRemoved    = "audit.removed"
	logRekey      = "audit.rekey"

	ownPrefix = "audit."
)

// Catalogue is every kind of record there is. Names in Must are those of the line,
// or else of attributes; any record may carry more than it must.
var Catalogue = []Kind{
	{Action: PlaneStart, Means: "a server of the plane starts", Must: []string{"version", "config"}},
	{Action: PlaneStop, Means: "it has stopped in order"},
	{Action: APIRequest, Means: "an operation of the API is about to be done",
		Must: []string{"actor", "request_id", "operation", "credential", "client"}},
	{Action: APIAnswer, Means: "what it came to",
		Must: []string{"actor", "request_id", "operation", "outcome", "status"}},
	{Action: AuthRefused, Means: "a request was turned away at the door",
		Must: []string{"request_id", "operation", "client", "outcome", "status"}},
	{Action: Approval, Means: "somebody allows or denies a tool call; the actor is who the server found the key to belong to",
		Must: []string{"actor", "request_id", "session_id", "call_id", "decision", "credential"}},
	{Action: PolicyChange, Means: "what agents, boxes or workloads may do is about to be changed",
		Must: []string{"actor", "request_id", "operation", "policy"}},
	{Action: KeyFirst, Means: "the first API key of a new database is about to be made", Must: []string{"file"}},
	{Action: WorkClaimed, Means: "a work item, with its session token, is about to be handed to a worker",
		Must: []string{"actor", "request_id", "environment_id", "session_id", "work_id", "worker"}},
	{Action: WorkLapsed, Means: "a worker's lease has run out; the item is taken from it",
		Must: []string{"environment_id", "session_id", "work_id", "state"}},
	{Action: LeaseRefused, Means: "a heartbeat was refused: the worker does not hold the lease",
		Must: []string{"actor", "request_id", "environment_id", "work_id"}},
	{Action: SessionStopped, Means: "the server ends a session by itself", Must: []string{"session_id", "detail"}},
	{Action: EdgeAuthority, Means: "a CA for edges and the plane's dialers is about to be made", Must: []string{"authority_id", "fingerprint"}},
	{Action: CredentialRefresh, Means: "a credential's access token is about to be renewed, or what came of it",
		Must: []string{"credential", "vault", "host", "outcome"}},
	{Action: CredentialHandOut, Means: "a credential's secret is about to be handed to the worker of a session",
		Must: []string{"actor", "session_id", "credential", "vault", "work_id"}},

	{Action: TunnelCreate, Means: "a tunnel is about to be made", Must: []string{"actor", "tunnel_id", "domain"}},
	{Action: TunnelArchive, Means: "a tunnel is about to be ended, with its tokens, certificates and connections",
		Must: []string{"actor", "tunnel_id", "domain"}},
	{Action: TunnelTokenReveal, Means: "a tunnel's token is about to be shown", Must: []string{"actor", "tunnel_id", "token_id"}},
	{Action: TunnelTokenRotate, Means: "a tunnel is about to get another token", Must: []string{"actor", "tunnel_id", "token_id", "old_token_id"}},
	{Action: TunnelTokenCreate, Means: "a tunnel is about to get a second token", Must: []string{"actor", "tunnel_id", "token_id"}},
	{Action: TunnelTokenRevoke, Means: "a token of a tunnel is about to be ended", Must: []string{"actor", "tunnel_id", "token_id"}},
	{Action: TunnelCertificateAdd, Means: "a tunnel is about to trust a CA",
		Must: []string{"actor", "tunnel_id", "certificate_id", "fingerprint"}},
	{Action: TunnelCertificateArchive, Means: "a tunnel is about to trust a CA no more",
		Must: []string{"actor", "tunnel_id", "certificate_id", "fingerprint"}},
	{Action: FederationGrant, Means: "a workload's identity is about to be exchanged for an access token",
		Must: []string{"actor", "rule_id", "issuer_id", "subject", "key_id"}},
	{Action: FederationRefused, Means: "such an exchange was refused", Must: []string{"rule_id", "reason"}},
	{Action: ConnectorCall, Means: "a call of an MCP tool is about to be made for a request of the Messages API",
		Must: []string{"actor", "request_id", "call_id", "tool", "mcp_server", "input", "start"}},
	{Action: ConnectorAnswer, Means: "what it came to",
		Must: []string{"actor", "request_id", "call_id", "tool", "mcp_server", "start", "end", "outcome"}},

	{Action: WorkerStart, Means: "a worker starts", Must: []string{"actor", "environment_id", "config"}},
	{Action: WorkerStop, Means: "it has stopped in order", Must: []string{"actor", "environment_id"}},
	{Action: ConfigChange, Means: "new settings are about to be taken on", Must: []string{"actor", "config"}},
	{Action: LeaseTaken, Means: "the worker has claimed a session", Must: []string{"actor", "session_id", "work_id"}},
	{Action: LeaseLost, Means: "it has lost one; the box is stopped", Must: []string{"actor", "session_id", "work_id"}},
	{Action: LeaseReleased, Means: "it has given one back", Must: []string{"actor", "session_id", "work_id"}},
	{Action: BoxStart, Means: "a box is about to be started", Must: []string{"actor", "backend"}},
	{Action: BoxStop, Means: "a box has ended", Must: []string{"actor", "outcome"}},
	{Action: BoxFreeze, Means: "a box is frozen", Must: []string{"actor"}},
	{Action: BoxThaw, Means: "a frozen box runs again", Must: []string{"actor"}},
	{Action: BoxCheckpoint, Means: "a box's state is about to be saved", Must: []string{"actor"}},
	{Action: BoxRestore, Means: "a box is about to be made from a saved state", Must: []string{"actor"}},
	{Action: LimitHit, Means: "a box met one of its limits", Must: []string{"actor", "limit"}},
	{Action: PoolFill, Means: "a box is about to be made in advance", Must: []string{"actor", "backend"}},
	{Action: PoolClaim, Means: "a box made in advance is given to a session", Must: []string{"actor", "session_id"}},
	{Action: ToolStart, Means: "a tool call is about to be run",
		Must: []string{"actor", "session_id", "call_id", "tool", "input", "start"}},
	{Action: ToolEnd, Means: "what it came to",
		Must: []string{"actor", "session_id", "call_id", "tool", "start", "end", "outcome"}},
	{Action: ToolDenied, Means: "a tool call was denied, by policy or by a person",
		Must: []string{"actor", "session_id", "call_id", "tool"}},
	{Action: ShellStart, Means: "a person's shell into a box is about to be opened", Must: []string{"actor", "session_id"}},
	{Action: ShellEnd, Means: "it is closed", Must: []string{"actor", "session_id", "outcome"}},
	{Action: EgressDecision, Means: "a box asks for the network; the decision is about to take effect",
		Must: []string{"actor", "protocol", "outcome"}},
	{Action: EgressEnd, Means: "a connection that was allowed has ended", Must: []string{"actor", "protocol", "outcome"}},
	{Action: EgressPolicy, Means: "a box's network policy is about to be set", Must: []string{"actor", "policy"}},
	{Action: EgressLost, Means: "a box's network policy is not enforced any more; the box is stopped", Must: []string{"actor"}},
	{Action: CredentialUse, Means: "a credential is about to be put into a request",
		Must: []string{"actor", "credential", "host"}},
	{Action: KeyRead, Means: "the worker's own key was read", Must: []string{"actor"}},

	{Action: GatewayStart, Means: "a gateway starts", Must: []string{"actor", "config"}},
	{Action: GatewayStop, Means: "it has stopped in order", Must: []string{"actor"}},
	{Action: MCPCall, Means: "a call to a private MCP server is about to be passed on",
		Must: []string{"actor", "route", "method", "start"}},
	{Action: MCPAnswer, Means: "what it came to",
		Must: []string{"actor", "route", "method", "start", "end", "outcome", "status"}},
	{Action: MCPRefused, Means: "a call to a private MCP server was refused by its route's rules",
		Must: []string{"actor", "route", "method", "outcome"}},

	{Action: logSegment, Own: true, Means: "a segment of the log begins"},
	{Action: logCheckpoint, Own: true, Means: "everything before this line is signed"},
	{Action: logRecovered, Own: true, Means: "a line torn by a crash was set aside"},
	{Action: logResumed, Own: true, Means: "the log can be written again; how much was refused meanwhile"},
	{Action: logDropped, Own: true, Means: "a best-effort sink was too slow; how much it does not have"},
	{Action: logHold, Own: true, Means: "records are held: they cannot be removed"},
	{Action: logRelease, Own: true, Means: "a hold is lifted"},
	{Action: logRemoved, Own: true, Means: "a segment that is old enough is about to be removed"},
	{Action: logRekey, Own: true, Means: "the log goes on with other keys, which the old one signs"},
}

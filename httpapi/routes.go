package httpapi

import (
	"context"
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// A handler answers one operation. Its answer is sent as JSON with status 200; a
// handler that has begun to write the response itself returns nil. Only an
// [*api.Error] in the chain of its error is shown to the caller.
type handler func(*Server, context.Context, *request) (any, error)

// A route is one operation of the public API. A route without a handler is known
// but not offered: it answers 404 and says so.
type route struct {
	op     string // as the official SDKs name it
	path   string // method and path, with {parameters}
	keys   credentials
	beta   string // the anthropic-beta value it needs, or ""
	status status
	handle handler
}

// credentials is the set of kinds of key that a route accepts.
type credentials []api.KeyKind

var (
	apiKey   = credentials{api.KeyAPI}
	orEnvKey = credentials{api.KeyAPI, api.KeyEnvironment}
	orToken  = credentials{api.KeyAPI, api.KeyEnvironment, api.KeySession}

	ofWorkers = credentials{api.KeyEnvironment, api.KeySession}
	ofEdges   = credentials{api.KeyEdge}

	// anybody is who shows no credential in a header: what proves something is in the body.
	anybody = credentials{""}

	orTunnels   = credentials{api.KeyAPI, api.KeyTunnels}
	orConnector = credentials{api.KeyAPI, api.KeyTunnels, api.KeyTunnelToken}
)

// betaAgents gates every operation on agents, environments and sessions.
const betaAgents = "managed-agents-2026-04-01"

// betaTunnels gates every operation on tunnels.
const betaTunnels = "mcp-tunnels-2026-06-22"

// betaFederation gates the exchange of a workload's identity.
const betaFederation = "oidc-federation-2026-04-01"

// A status says how far an operation can be relied on. docs/compatibility.md
// shows it; the code never looks at it.
type status string

const (
	behaves status = "behaves" // acts as the public API does, as far as that is known
	routed  status = "routed"  // answers, but knowingly less than the public API
	passed  status = "passed"  // handed to the configured model endpoint
	ours    status = "ours"    // an extension of this server
	notYet  status = "not yet"
)

// routes is the whole public surface.
var routes = []route{
	{"agents.create", "POST /v1/agents", apiKey, betaAgents, routed, (*Server).createAgent},
	{"agents.list", "GET /v1/agents", apiKey, betaAgents, behaves, (*Server).listAgents},
	{"agents.retrieve", "GET /v1/agents/{agent}", apiKey, betaAgents, behaves, (*Server).getAgent},
	{"agents.update", "POST /v1/agents/{agent}", apiKey, betaAgents, routed, (*Server).updateAgent},
	{"agents.archive", "POST /v1/agents/{agent}/archive", apiKey, betaAgents, behaves, (*Server).archiveAgent},
	{"agents.versions.list", "GET /v1/agents/{agent}/versions", apiKey, betaAgents, behaves, (*Server).listAgentVersions},

	{"environments.create", "POST /v1/environments", apiKey, betaAgents, behaves, (*Server).createEnvironment},
	{"environments.list", "GET /v1/environments", apiKey, betaAgents, behaves, (*Server).listEnvironments},
	{"environments.retrieve", "GET /v1/environments/{environment}", apiKey, betaAgents, behaves, (*Server).getEnvironment},
	{"environments.update", "POST /v1/environments/{environment}", apiKey, betaAgents, behaves, (*Server).updateEnvironment},
	{"environments.delete", "DELETE /v1/environments/{environment}", apiKey, betaAgents, behaves, (*Server).deleteEnvironment},
	{"environments.archive", "POST /v1/environments/{environment}/archive", apiKey, betaAgents, behaves, (*Server).archiveEnvironment},

	{"environments.work.list", "GET /v1/environments/{environment}/work", orEnvKey, betaAgents, behaves, (*Server).listWork},
	{"environments.work.poll", "GET /v1/environments/{environment}/work/poll", orEnvKey, betaAgents, behaves, (*Server).pollWork},
	{"environments.work.stats", "GET /v1/environments/{environment}/work/stats", orEnvKey, betaAgents, behaves, (*Server).workStats},
	{"environments.work.retrieve", "GET /v1/environments/{environment}/work/{work}", apiKey, betaAgents, behaves, (*Server).getWork},
	{"environments.work.update", "POST /v1/environments/{environment}/work/{work}", apiKey, betaAgents, behaves, (*Server).updateWork},
	{"environments.work.ack", "POST /v1/environments/{environment}/work/{work}/ack", orEnvKey, betaAgents, behaves, (*Server).ackWork},
	{"environments.work.heartbeat", "POST /v1/environments/{environment}/work/{work}/heartbeat", orToken, betaAgents, behaves, (*Server).heartbeatWork},
	{"environments.work.stop", "POST /v1/environments/{environment}/work/{work}/stop", orToken, betaAgents, behaves, (*Server).stopWork},

	{"sessions.create", "POST /v1/sessions", apiKey, betaAgents, routed, (*Server).createSession},
	{"sessions.list", "GET /v1/sessions", apiKey, betaAgents, behaves, (*Server).listSessions},
	{"sessions.retrieve", "GET /v1/sessions/{session}", orToken, betaAgents, behaves, (*Server).getSession},
	{"sessions.update", "POST /v1/sessions/{session}", apiKey, betaAgents, routed, (*Server).updateSession},
	{"sessions.delete", "DELETE /v1/sessions/{session}", apiKey, betaAgents, behaves, (*Server).deleteSession},
	{"sessions.archive", "POST /v1/sessions/{session}/archive", apiKey, betaAgents, behaves, (*Server).archiveSession},

	{"sessions.events.list", "GET /v1/sessions/{session}/events", orToken, betaAgents, behaves, (*Server).listEvents},
	{"sessions.events.send", "POST /v1/sessions/{session}/events", orToken, betaAgents, routed, (*Server).sendEvents},
	{"sessions.events.stream", "GET /v1/sessions/{session}/events/stream", orToken, betaAgents, behaves, (*Server).streamEvents},

	{"sessions.threads.list", "GET /v1/sessions/{session}/threads", orToken, betaAgents, routed, (*Server).listThreads},
	{"sessions.threads.retrieve", "GET /v1/sessions/{session}/threads/{thread}", orToken, betaAgents, routed, (*Server).getThread},
	{"sessions.threads.archive", "POST /v1/sessions/{session}/threads/{thread}/archive", apiKey, betaAgents, routed, (*Server).archiveThread},
	{"sessions.threads.events.list", "GET /v1/sessions/{session}/threads/{thread}/events", orToken, betaAgents, routed, (*Server).listEvents},
	{"sessions.threads.events.stream", "GET /v1/sessions/{session}/threads/{thread}/stream", orToken, betaAgents, routed, (*Server).streamEvents},

	{"vaults.create", "POST /v1/vaults", apiKey, betaAgents, behaves, (*Server).createVault},
	{"vaults.list", "GET /v1/vaults", apiKey, betaAgents, behaves, (*Server).listVaults},
	{"vaults.retrieve", "GET /v1/vaults/{vault}", apiKey, betaAgents, behaves, (*Server).getVault},
	{"vaults.update", "POST /v1/vaults/{vault}", apiKey, betaAgents, behaves, (*Server).updateVault},
	{"vaults.delete", "DELETE /v1/vaults/{vault}", apiKey, betaAgents, behaves, (*Server).deleteVault},
	{"vaults.archive", "POST /v1/vaults/{vault}/archive", apiKey, betaAgents, behaves, (*Server).archiveVault},
	{"vaults.credentials.create", "POST /v1/vaults/{vault}/credentials", apiKey, betaAgents, behaves, (*Server).createCredential},
	{"vaults.credentials.list", "GET /v1/vaults/{vault}/credentials", apiKey, betaAgents, behaves, (*Server).listCredentials},
	{"vaults.credentials.retrieve", "GET /v1/vaults/{vault}/credentials/{credential}", apiKey, betaAgents, behaves, (*Server).getCredential},
	{"vaults.credentials.update", "POST /v1/vaults/{vault}/credentials/{credential}", apiKey, betaAgents, behaves, (*Server).updateCredential},
	{"vaults.credentials.delete", "DELETE /v1/vaults/{vault}/credentials/{credential}", apiKey, betaAgents, behaves, (*Server).deleteCredential},
	{"vaults.credentials.archive", "POST /v1/vaults/{vault}/credentials/{credential}/archive", apiKey, betaAgents, behaves, (*Server).archiveCredential},
	{"vaults.credentials.mcp_oauth_validate", "POST /v1/vaults/{vault}/credentials/{credential}/mcp_oauth_validate", apiKey, betaAgents, behaves, (*Server).validateCredential},

	{"messages.create", "POST /v1/messages", apiKey, "", passed, (*Server).createMessage},
	{"messages.count_tokens", "POST /v1/messages/count_tokens", apiKey, "", passed, (*Server).forward},
	{"models.list", "GET /v1/models", apiKey, "", passed, (*Server).forward},
	{"models.retrieve", "GET /v1/models/{model...}", apiKey, "", passed, (*Server).forward},

	{"keys.create", "POST /v1/keys", apiKey, "", ours, (*Server).createKey},
	{"keys.list", "GET /v1/keys", apiKey, "", ours, (*Server).listKeys},
	{"keys.revoke", "POST /v1/keys/{key}/revoke", apiKey, "", ours, (*Server).revokeKey},
	{"environments.keys.create", "POST /v1/environments/{environment}/keys", apiKey, "", ours, (*Server).createKey},
	{"environments.keys.list", "GET /v1/environments/{environment}/keys", apiKey, "", ours, (*Server).listKeys},
	{"environments.keys.revoke", "POST /v1/environments/{environment}/keys/{key}/revoke", apiKey, "", ours, (*Server).revokeKey},
	{"sessions.shell", "GET /v1/sessions/{session}/shell", apiKey, "", ours, (*Server).openShell},
	{"vaults.credentials.oauth_request", "POST /v1/vaults/{vault}/credentials/oauth_request", apiKey, "", ours, (*Server).oauthRequest},
	{"vault_keys.list", "GET /v1/vault_keys", apiKey, "", ours, (*Server).listVaultKeys},
	{"vault_keys.rotate", "POST /v1/vault_keys/rotate", apiKey, "", ours, (*Server).rotateVaultKey},
	{"environments.work.variables.list", "GET /v1/environments/{environment}/work/{work}/variables", ofWorkers, "", ours, (*Server).listVariables},
	{"environments.work.variables.value", "POST /v1/environments/{environment}/work/{work}/variables/{credential}/value", ofWorkers, "", ours, (*Server).handOutVariable},
	{"environments.work.shells.next", "GET /v1/environments/{environment}/work/{work}/shells/next", ofWorkers, "", ours, (*Server).nextShell},
	{"environments.work.shells.attach", "GET /v1/environments/{environment}/work/{work}/shells/{shell}/attach", ofWorkers, "", ours, (*Server).attachShell},
	{"edges.register", "POST /v1/edges", ofEdges, "", ours, (*Server).registerEdge},
	{"edges.list", "GET /v1/edges", apiKey, "", ours, (*Server).listEdges},
	{"edges.leave", "POST /v1/edges/{edge}/leave", ofEdges, "", ours, (*Server).leaveEdge},
	{"edges.certificate", "POST /v1/edges/{edge}/certificate", ofEdges, "", ours, (*Server).certifyEdge},
	{"edges.attachments.create", "POST /v1/edges/{edge}/attachments", ofEdges, "", ours, (*Server).attachTunnel},
	{"edges.attachments.detach", "POST /v1/edges/{edge}/attachments/{attachment}/detach", ofEdges, "", ours, (*Server).detachTunnel},
	{"edges.reports.create", "POST /v1/edges/{edge}/reports", ofEdges, "", ours, (*Server).reportEdge},
	{"edges.changes", "GET /v1/edges/{edge}/changes", ofEdges, "", ours, (*Server).edgeChanges},
	{"edge_authorities.list", "GET /v1/edge_authorities", apiKey, "", ours, (*Server).listAuthorities},
	{"edge_authorities.rotate", "POST /v1/edge_authorities/rotate", apiKey, "", ours, (*Server).rotateAuthority},
	{"edge_authorities.archive", "POST /v1/edge_authorities/{authority}/archive", apiKey, "", ours, (*Server).archiveAuthority},
	{"tunnels.connections", "GET /v1/tunnels/{tunnel}/connections", orTunnels, "", ours, (*Server).tunnelConnections},
	{"tunnels.edges", "GET /v1/tunnels/{tunnel}/edges", orConnector, "", ours, (*Server).tunnelEdges},
	{"tunnels.usage", "GET /v1/tunnels/{tunnel}/usage", orTunnels, "", ours, (*Server).tunnelUsage},
	{"sessions.events.output", "GET /v1/sessions/{session}/events/{event}/output", orToken, betaAgents, ours, (*Server).eventOutput},
	{"sessions.stream", "GET /v1/sessions/{session}/stream", orToken, betaAgents, ours, (*Server).streamEvents}, // the path at launch

	{op: "sessions.resources.list", path: "GET /v1/sessions/{session}/resources"},
	{op: "sessions.resources.add", path: "POST /v1/sessions/{session}/resources"},
	{op: "sessions.resources.retrieve", path: "GET /v1/sessions/{session}/resources/{resource}"},
	{op: "sessions.resources.update", path: "POST /v1/sessions/{session}/resources/{resource}"},
	{op: "sessions.resources.delete", path: "DELETE /v1/sessions/{session}/resources/{resource}"},

	{op: "memory_stores.create", path: "POST /v1/memory_stores"},
	{op: "memory_stores.list", path: "GET /v1/memory_stores"},
	{op: "memory_stores.retrieve", path: "GET /v1/memory_stores/{store}"},
	{op: "memory_stores.update", path: "POST /v1/memory_stores/{store}"},
	{op: "memory_stores.delete", path: "DELETE /v1/memory_stores/{store}"},
	{op: "memory_stores.archive", path: "POST /v1/memory_stores/{store}/archive"},
	{op: "memory_stores.memories.create", path: "POST /v1/memory_stores/{store}/memories"},
	{op: "memory_stores.memories.list", path: "GET /v1/memory_stores/{store}/memories"},
	{op: "memory_stores.memories.retrieve", path: "GET /v1/memory_stores/{store}/memories/{memory}"},
	{op: "memory_stores.memories.update", path: "POST /v1/memory_stores/{store}/memories/{memory}"},
	{op: "memory_stores.memories.delete", path: "DELETE /v1/memory_stores/{store}/memories/{memory}"},
	{op: "memory_stores.memory_versions.list", path: "GET /v1/memory_stores/{store}/memory_versions"},
	{op: "memory_stores.memory_versions.retrieve", path: "GET /v1/memory_stores/{store}/memory_versions/{version}"},
	{op: "memory_stores.memory_versions.redact", path: "POST /v1/memory_stores/{store}/memory_versions/{version}/redact"},

	{op: "deployments.create", path: "POST /v1/deployments"},
	{op: "deployments.list", path: "GET /v1/deployments"},
	{op: "deployments.retrieve", path: "GET /v1/deployments/{deployment}"},
	{op: "deployments.update", path: "POST /v1/deployments/{deployment}"},
	{op: "deployments.archive", path: "POST /v1/deployments/{deployment}/archive"},
	{op: "deployments.pause", path: "POST /v1/deployments/{deployment}/pause"},
	{op: "deployments.unpause", path: "POST /v1/deployments/{deployment}/unpause"},
	{op: "deployments.run", path: "POST /v1/deployments/{deployment}/run"},
	{op: "deployment_runs.list", path: "GET /v1/deployment_runs"},
	{op: "deployment_runs.retrieve", path: "GET /v1/deployment_runs/{run}"},

	{op: "dreams.create", path: "POST /v1/dreams"},
	{op: "dreams.list", path: "GET /v1/dreams"},
	{op: "dreams.retrieve", path: "GET /v1/dreams/{dream}"},
	{op: "dreams.cancel", path: "POST /v1/dreams/{dream}/cancel"},
	{op: "dreams.archive", path: "POST /v1/dreams/{dream}/archive"},

	{op: "skills.create", path: "POST /v1/skills"},
	{op: "skills.list", path: "GET /v1/skills"},
	{op: "skills.retrieve", path: "GET /v1/skills/{skill}"},
	{op: "skills.delete", path: "DELETE /v1/skills/{skill}"},
	{op: "skills.versions.create", path: "POST /v1/skills/{skill}/versions"},
	{op: "skills.versions.list", path: "GET /v1/skills/{skill}/versions"},
	{op: "skills.versions.retrieve", path: "GET /v1/skills/{skill}/versions/{version}"},
	{op: "skills.versions.delete", path: "DELETE /v1/skills/{skill}/versions/{version}"},
	{op: "skills.versions.download", path: "GET /v1/skills/{skill}/versions/{version}/content"},

	{op: "files.upload", path: "POST /v1/files"},
	{op: "files.list", path: "GET /v1/files"},
	{op: "files.retrieve_metadata", path: "GET /v1/files/{file}"},
	{op: "files.delete", path: "DELETE /v1/files/{file}"},
	{op: "files.download", path: "GET /v1/files/{file}/content"},

	{op: "user_profiles.create", path: "POST /v1/user_profiles"},
	{op: "user_profiles.list", path: "GET /v1/user_profiles"},
	{op: "user_profiles.retrieve", path: "GET /v1/user_profiles/{profile}"},
	{op: "user_profiles.update", path: "POST /v1/user_profiles/{profile}"},
	{op: "user_profiles.delete", path: "DELETE /v1/user_profiles/{profile}"},
	{op: "user_profiles.create_enrollment_url", path: "POST /v1/user_profiles/{profile}/enrollment_url"},
	{op: "user_profiles.create_action_url", path: "POST /v1/user_profiles/{profile}/action_urls"},

	{"tunnels.create", "POST /v1/tunnels", orTunnels, betaTunnels, behaves, (*Server).createTunnel},
	{"tunnels.list", "GET /v1/tunnels", orTunnels, betaTunnels, behaves, (*Server).listTunnels},
	{"tunnels.retrieve", "GET /v1/tunnels/{tunnel}", orTunnels, betaTunnels, behaves, (*Server).getTunnel},
	{"tunnels.archive", "POST /v1/tunnels/{tunnel}/archive", orTunnels, betaTunnels, behaves, (*Server).archiveTunnel},
	{"tunnels.reveal_token", "POST /v1/tunnels/{tunnel}/reveal_token", orTunnels, betaTunnels, behaves, (*Server).revealToken},
	{"tunnels.rotate_token", "POST /v1/tunnels/{tunnel}/rotate_token", orTunnels, betaTunnels, behaves, (*Server).rotateToken},
	{"tunnels.certificates.create", "POST /v1/tunnels/{tunnel}/certificates", orTunnels, betaTunnels, behaves, (*Server).addCertificate},
	{"tunnels.certificates.list", "GET /v1/tunnels/{tunnel}/certificates", orTunnels, betaTunnels, behaves, (*Server).listCertificates},
	{"tunnels.certificates.retrieve", "GET /v1/tunnels/{tunnel}/certificates/{certificate}", orTunnels, betaTunnels, behaves, (*Server).getCertificate},
	{"tunnels.certificates.archive", "POST /v1/tunnels/{tunnel}/certificates/{certificate}/archive", orTunnels, betaTunnels, behaves, (*Server).archiveCertificate},
	{"tunnels.tokens.create", "POST /v1/tunnels/{tunnel}/tokens", orTunnels, "", ours, (*Server).createToken},
	{"tunnels.tokens.list", "GET /v1/tunnels/{tunnel}/tokens", orTunnels, "", ours, (*Server).listTokens},
	{"tunnels.tokens.revoke", "POST /v1/tunnels/{tunnel}/tokens/{token}/revoke", orTunnels, "", ours, (*Server).revokeToken},

	{op: "organizations.webhooks.create", path: "POST /v1/organizations/webhooks"},
	{op: "organizations.webhooks.list", path: "GET /v1/organizations/webhooks"},
	{op: "organizations.webhooks.retrieve", path: "GET /v1/organizations/webhooks/{webhook}"},
	{op: "organizations.webhooks.update", path: "POST /v1/organizations/webhooks/{webhook}"},
	{op: "organizations.webhooks.delete", path: "DELETE /v1/organizations/webhooks/{webhook}"},
	{op: "organizations.webhooks.regenerate_signing_secret", path: "POST /v1/organizations/webhooks/{webhook}/regenerate_signing_secret"},

	{"organizations.federation_issuers.create", "POST /v1/organizations/federation_issuers", apiKey, "", behaves, (*Server).createIssuer},
	{"organizations.federation_issuers.list", "GET /v1/organizations/federation_issuers", apiKey, "", behaves, (*Server).listIssuers},
	{"organizations.federation_issuers.retrieve", "GET /v1/organizations/federation_issuers/{issuer}", apiKey, "", behaves, (*Server).getIssuer},
	{"organizations.federation_issuers.update", "POST /v1/organizations/federation_issuers/{issuer}", apiKey, "", behaves, (*Server).updateIssuer},
	{"organizations.federation_issuers.archive", "POST /v1/organizations/federation_issuers/{issuer}/archive", apiKey, "", behaves, (*Server).archiveIssuer},
	{"organizations.federation_rules.create", "POST /v1/organizations/federation_rules", apiKey, "", routed, (*Server).createRule},
	{"organizations.federation_rules.list", "GET /v1/organizations/federation_rules", apiKey, "", behaves, (*Server).listRules},
	{"organizations.federation_rules.retrieve", "GET /v1/organizations/federation_rules/{rule}", apiKey, "", behaves, (*Server).getRule},
	{"organizations.federation_rules.update", "POST /v1/organizations/federation_rules/{rule}", apiKey, "", routed, (*Server).updateRule},
	{"organizations.federation_rules.archive", "POST /v1/organizations/federation_rules/{rule}/archive", apiKey, "", behaves, (*Server).archiveRule},
	{"organizations.service_accounts.create", "POST /v1/organizations/service_accounts", apiKey, "", behaves, (*Server).createServiceAccount},
	{"organizations.service_accounts.list", "GET /v1/organizations/service_accounts", apiKey, "", behaves, (*Server).listServiceAccounts},
	{"organizations.service_accounts.retrieve", "GET /v1/organizations/service_accounts/{account}", apiKey, "", behaves, (*Server).getServiceAccount},
	{"organizations.service_accounts.update", "POST /v1/organizations/service_accounts/{account}", apiKey, "", behaves, (*Server).updateServiceAccount},
	{"organizations.service_accounts.archive", "POST /v1/organizations/service_accounts/{account}/archive", apiKey, "", behaves, (*Server).archiveServiceAccount},
	{"organizations.federation_exchanges.list", "GET /v1/organizations/federation_exchanges", apiKey, "", ours, (*Server).listExchanges},
	{"oauth.token", "POST /v1/oauth/token", anybody, betaFederation, behaves, (*Server).exchangeToken},

	{op: "messages.batches.create", path: "POST /v1/messages/batches"},
	{op: "messages.batches.list", path: "GET /v1/messages/batches"},
	{op: "messages.batches.retrieve", path: "GET /v1/messages/batches/{batch}"},
	{op: "messages.batches.delete", path: "DELETE /v1/messages/batches/{batch}"},
	{op: "messages.batches.cancel", path: "POST /v1/messages/batches/{batch}/cancel"},
	{op: "messages.batches.results", path: "GET /v1/messages/batches/{batch}/results"},
}

// split returns the method and the path of rt.
func (rt *route) split() (method, path string) {
	method, path, _ = strings.Cut(rt.path, " ")
	return method, path
}

// params returns the names of the path parameters of rt that are identifiers of
// ours. A {name...} takes the rest of the path and is somebody else's.
func (rt *route) params() []string {
	var names []string
	for seg := range strings.SplitSeq(rt.path, "/") {
		if strings.HasPrefix(seg, "{") && !strings.HasSuffix(seg, "...}") {
			names = append(names, seg[1:len(seg)-1])
		}
	}
	return names
}

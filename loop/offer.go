package loop

import (
	"slices"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/tool"
)

// An offer is a tool that the model may call in a session.
type offer struct {
	model.Tool
	custom bool
	policy string // who decides about a call; not of custom tools

	// Of a tool of an MCP server: the server's name, and the tool's own there.
	server, bare string
}

// offersMax bounds the tools of one request.
const offersMax = 1024

// offers returns the tools of an agent that this server can have run: the
// enabled built-in tools that run in a box, the custom ones, and the enabled ones of
// the MCP servers in box. The web tools are not among them yet.
func offers(agent *api.SessionAgent, box *toolbox) []offer {
	var out []offer
	for _, t := range agent.Tools {
		switch t.Type {
		case api.ToolCustom:
			out = append(out, offer{Tool: model.Tool{Name: t.Name, Description: t.Description, InputSchema: t.InputSchema}, custom: true})
		case api.ToolsetBuiltin:
			for _, d := range tool.Definitions() {
				if enabled, policy := t.Setting(d.Name); enabled {
					out = append(out, offer{Tool: model.Tool{Name: d.Name, Description: d.Description, InputSchema: d.InputSchema}, policy: policy})
				}
			}
		case api.ToolsetMCP:
			for _, d := range box.of(t.MCPServerName) {
				name := mcp.ModelName(t.MCPServerName, d.Name)
				enabled, policy := t.Setting(d.Name)
				if enabled && len(out) < offersMax && findOffer(out, name) == nil {
					out = append(out, offer{
						Tool:   model.Tool{Name: name, Description: d.Description, InputSchema: d.InputSchema},
						policy: policy, server: t.MCPServerName, bare: d.Name,
					})
				}
			}
		}
	}
	return out
}

// leftOut counts the enabled tools of MCP servers for which there is no room among the
// offers.
func leftOut(agent *api.SessionAgent, box *toolbox) (n int) {
	offered := offers(agent, box)
	if len(offered) < offersMax {
		return 0
	}
	for _, t := range agent.Tools {
		if t.Type != api.ToolsetMCP {
			continue
		}
		for _, d := range box.of(t.MCPServerName) {
			if enabled, _ := t.Setting(d.Name); enabled && findOffer(offered, mcp.ModelName(t.MCPServerName, d.Name)) == nil {
				n++
			}
		}
	}
	return n
}

func findOffer(offers []offer, name string) *offer {
	i := slices.IndexFunc(offers, func(o offer) bool { return o.Name == name })
	if i < 0 {
		return nil
	}
	return &offers[i]
}

// systemPrompt is the agent's own, with a few facts that the model cannot know
// otherwise.
func systemPrompt(agent *api.SessionAgent, offers []offer) string {
	prompt := ""
	if agent.System != nil {
		prompt = *agent.System
	}
	if !slices.ContainsFunc(offers, func(o offer) bool { return !o.custom && o.server == "" }) {
		return prompt
	}
	if prompt != "" {
		prompt += "\n\n"
	}
	return prompt + environmentPrompt
}

const environmentPrompt = `# Environment

The built-in tools run in a sandbox of this session. Relative paths start at its working directory, and the file tools reach nothing outside of it. Files stay there for as long as the session lasts. A call may need the approval of a person first; a rejected call was not run.`

// modelRequest returns the next request for a response.
func (s *State) modelRequest() model.Request {
	agent := &s.session.Agent
	offers := offers(agent, s.mcp)
	req := baseRequest(agent)
	req.System = systemPrompt(agent, offers)
	req.Messages = s.messages()
	for _, o := range offers {
		req.Tools = append(req.Tools, o.Tool)
	}
	return req
}

func baseRequest(agent *api.SessionAgent) model.Request {
	req := model.Request{Model: agent.Model.ID, Speed: agent.Model.Speed, InferenceGeo: agent.Model.InferenceGeo}
	// High is what a model does unasked, and every agent's default; models without
	// levels of effort refuse to be asked.
	if e := agent.Model.Effort; e != nil && e.Type != "high" {
		req.Effort = e.Type
	}
	return req
}

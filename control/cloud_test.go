package control

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
)

func (w *world) cloudSession() (api.EnvironmentID, func() (*api.Session, error)) {
	w.t.Helper()
	agent := must1[*api.Agent](w.t)(w.CreateAgent(w.ctx, w.admin, api.AgentCreate{Name: "a", Model: &api.ModelConfig{ID: "m"}}))
	env := must1[*api.Environment](w.t)(w.CreateEnvironment(w.ctx, w.admin, api.EnvironmentCreate{Name: "cloud"}))
	return env.ID, func() (*api.Session, error) {
		return w.CreateSession(w.ctx, w.admin, api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: agent.ID}, EnvironmentID: env.ID})
	}
}

func TestCloudSessionsAreRefusedWhereNothingCanRunThem(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cloud func(context.Context) error
		want  string
	}{
		"switched off": {nil, "runs no tools itself"},
		"no sandbox":   {func(context.Context) error { return errors.New("user namespaces are switched off") }, "no usable sandbox to run its tools in: user namespaces are switched off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, Config{Cloud: tc.cloud})
			_, create := w.cloudSession()
			_, err := create()
			wantError(t, err, 400, tc.want)
			if envs := must1[[]*api.Environment](t)(w.CloudEnvironments(w.ctx)); len(envs) != 0 {
				t.Errorf("a refused session made work: %+v", envs)
			}
		})
	}
}

func TestCloudSessionsAreServedWithAKeyOfTheServersOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{Cloud: func(context.Context) error { return nil }, UnclaimedAfter: time.Minute})
	env, create := w.cloudSession()
	for len(w.CloudChanged()) > 0 {
		<-w.CloudChanged()
	}
	s := must1[*api.Session](t)(create())
	select {
	case <-w.CloudChanged():
	default:
		t.Error("nobody was told of the first work")
	}
	if envs := must1[[]*api.Environment](t)(w.CloudEnvironments(w.ctx)); len(envs) != 1 || envs[0].ID != env {
		t.Fatalf("with work: %+v", envs)
	}
	_, err := w.CreateKey(w.ctx, w.admin, env, api.KeyCreate{Name: "k"})
	wantError(t, err, 400, "not self_hosted")

	secret, drop := w.OwnKey(env)
	own := must1[Principal](t)(w.Authenticate(w.ctx, secret))
	if want := (Principal{Kind: api.KeyEnvironment, EnvironmentID: env, Own: true}); own != want {
		t.Errorf("the key stands for %+v", own)
	}
	if keys := must1[api.Page[*api.Key]](t)(w.ListKeys(w.ctx, w.admin, env, api.PageRequest{})); len(keys.Data) != 0 {
		t.Errorf("it is listed: %+v", keys.Data)
	}
	f := must1[*Follower](t)(w.Follow(w.ctx, own, s.ID, "", FollowOptions{}))
	f.Close()
	item, _ := w.take(own)
	if item.Data.ID != s.ID {
		t.Errorf("the item is of %s", item.Data.ID)
	}
	_, err = w.PollWork(w.ctx, own, "env_other", api.PollRequest{})
	wantError(t, err, 404, "")
	w.stop(own, item.ID, true)
	drop()
	_, err = w.Authenticate(w.ctx, secret)
	wantError(t, err, 401, "")
	if envs := must1[[]*api.Environment](t)(w.CloudEnvironments(w.ctx)); len(envs) != 0 {
		t.Errorf("with work, after all is done: %+v", envs)
	}
}

func TestCloudEnvironmentsAreReadWithoutWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	env, _ := w.cloudSession()
	got := must1[[]*api.Environment](t)(w.CloudConfigured(w.ctx, []api.EnvironmentID{"env_none", env}))
	if len(got) != 1 || got[0].ID != env {
		t.Errorf("%+v", got)
	}
}

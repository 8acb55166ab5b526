// What a user's program does with the official SDK. Everything is asserted here;
// the exit status tells.
import assert from 'node:assert/strict';
import Anthropic, { NotFoundError, ConflictError } from '@anthropic-ai/sdk';

const { PLANE_URL, PLANE_KEY, PROMPT, ANSWER } = process.env;
const model = 'claude-opus-4-5';

async function ids(pages) {
  const out = [];
  for await (const object of pages) out.push(object.id);
  return out;
}

async function manage(client) {
  const agent = await client.beta.agents.create({
    name: 'librarian', model, system: 'You know every book.', metadata: { team: 'books' },
    tools: [{ type: 'agent_toolset_20260401', default_config: { permission_policy: { type: 'always_ask' } } }],
  });
  assert.match(agent.id, /^agent_/);
  assert.equal(agent.version, 1);
  assert.equal(agent.model.id, model);
  assert.equal(agent.tools[0].default_config.permission_policy.type, 'always_ask');
  assert.equal(agent.archived_at, null);
  const changed = await client.beta.agents.update(agent.id, { version: 1, description: 'finds books' });
  assert.equal(changed.version, 2);
  assert.equal(changed.description, 'finds books');
  await assert.rejects(client.beta.agents.update(agent.id, { version: 1, name: 'x' }), ConflictError);
  assert.equal((await client.beta.agents.retrieve(agent.id, { version: 1 })).description, null);
  const versions = [];
  for await (const v of client.beta.agents.versions.list(agent.id, { limit: 1 })) versions.push(v.version);
  assert.deepEqual(versions, [2, 1]);
  assert((await ids(client.beta.agents.list({ limit: 2 }))).includes(agent.id));

  const environment = await client.beta.environments.create({ name: 'desks', config: { type: 'self_hosted' } });
  assert.equal(environment.config.type, 'self_hosted');
  await client.beta.environments.update(environment.id, { description: 'ours' });
  assert.equal((await client.beta.environments.retrieve(environment.id)).description, 'ours');
  assert((await ids(client.beta.environments.list({ limit: 2 }))).includes(environment.id));

  const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id, title: 'Monday' });
  assert.equal(session.status, 'idle');
  assert.equal(session.agent.version, 2);
  assert.equal((await client.beta.sessions.update(session.id, { title: 'Tuesday' })).title, 'Tuesday');
  assert.equal((await client.beta.sessions.retrieve(session.id)).title, 'Tuesday');
  assert.deepEqual(await ids(client.beta.sessions.list({ agent_id: agent.id })), [session.id]);
  const [thread] = (await client.beta.sessions.threads.list(session.id)).data;
  assert.equal(thread.session_id, session.id);
  const stats = await client.beta.environments.work.stats(environment.id);
  assert.equal(stats.depth, 1);

  assert.equal((await client.beta.sessions.archive(session.id)).status, 'terminated');
  assert.equal((await client.beta.sessions.delete(session.id)).type, 'session_deleted');
  await assert.rejects(client.beta.sessions.retrieve(session.id), (err) => {
    assert(err instanceof NotFoundError);
    assert.match(err.requestID, /^req_/);
    assert.equal(err.error.error.type, 'not_found_error');
    return true;
  });
  assert.notEqual((await client.beta.agents.archive(agent.id)).archived_at, null);
  assert.notEqual((await client.beta.environments.archive(environment.id)).archived_at, null);
  assert.equal((await client.beta.environments.delete(environment.id)).type, 'environment_deleted');
}

async function converse(client) {
  const agent = await client.beta.agents.create({ name: 'clerk', model });
  const environment = await client.beta.environments.create({ name: 'none', config: { type: 'self_hosted' } });
  const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
  const stream = await client.beta.sessions.events.stream(session.id, { event_deltas: ['agent.message', 'agent.thinking'] });
  const { data: sent } = await client.beta.sessions.events.send(session.id, {
    events: [{ type: 'user.message', content: [{ type: 'text', text: PROMPT }] }],
  });
  assert.match(sent[0].id, /^sevt_/);

  const streamed = [];
  const previews = new Map();
  for await (const event of stream) {
    if (event.type === 'event_start') {
      assert(!previews.has(event.event.id));
      previews.set(event.event.id, '');
      continue;
    }
    if (event.type === 'event_delta') {
      previews.set(event.event_id, previews.get(event.event_id) + event.delta.content.text);
      continue;
    }
    streamed.push(event.id);
    if (event.type === 'agent.message') {
      assert.equal(event.content[0].text, ANSWER);
      assert(ANSWER.startsWith(previews.get(event.id)) && previews.get(event.id).length > 0);
    }
    if (event.type === 'session.status_idle') {
      assert.equal(event.stop_reason.type, 'end_turn');
      break;
    }
  }
  // The queued message came twice over the stream.
  assert.deepEqual(await ids(client.beta.sessions.events.list(session.id, { limit: 3 })), [...new Set(streamed)]);
}

async function passThrough(client) {
  assert((await ids(client.models.list())).includes(model));
  const request = { model, max_tokens: 1000, messages: [{ role: 'user', content: PROMPT }] };
  assert((await client.messages.countTokens({ model, messages: request.messages })).input_tokens > 0);
  const whole = await client.messages.create(request);
  assert.equal(whole.content.at(-1).text, ANSWER);
  assert.equal((await client.messages.stream(request).finalMessage()).content.at(-1).text, ANSWER);
}

for (const credential of [{ apiKey: PLANE_KEY }, { authToken: PLANE_KEY, apiKey: null }]) {
  const client = new Anthropic({ baseURL: PLANE_URL, maxRetries: 0, ...credential });
  await manage(client);
  await converse(client);
  await passThrough(client);
}
console.log('all as expected');

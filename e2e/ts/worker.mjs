// The official worker, until SIGTERM.
import Anthropic from '@anthropic-ai/sdk';

const { PLANE_URL, ENVIRONMENT_ID, ENVIRONMENT_KEY, WORKDIR } = process.env;
const end = new AbortController();
process.once('SIGTERM', () => end.abort());

const client = new Anthropic({ baseURL: PLANE_URL, authToken: ENVIRONMENT_KEY, apiKey: null });
const worker = client.beta.environments.work.worker({
  environmentId: ENVIRONMENT_ID, environmentKey: ENVIRONMENT_KEY, workdir: WORKDIR, signal: end.signal,
});
console.log('worker started');
await worker.run();
console.log('worker ended');

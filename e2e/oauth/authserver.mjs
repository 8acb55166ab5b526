// A real OAuth authorization server, which takes each refresh token once: a second use
// ends all that came of the person's consent. See oauth_test.go.
import http from 'node:http';
import { Provider } from 'oidc-provider';

const server = http.createServer();
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  scopes: ['openid', 'offline_access', 'read'],
  pkce: { required: () => true },
  rotateRefreshToken: true,
  issueRefreshToken: async () => true,
  ttl: { AccessToken: 600, Grant: 600, Interaction: 600, Session: 600, RefreshToken: 600, AuthorizationCode: 60 },
  cookies: { keys: ['a key for the test'] },
  findAccount: async (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  features: {
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: async () => true,
      getResourceServerInfo: async (ctx, resource) => ({ scope: 'read', audience: resource, accessTokenTTL: 600, accessTokenFormat: 'opaque' }),
    },
  },
});

const seen = new Set(); // tokens that were asked about
const ended = new Set(); // those that are good no more, although they have not expired
let renewals = 0;
provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type === 'refresh_token') renewals++;
});

const handle = provider.callback();
server.on('request', async (req, res) => {
  const url = new URL(req.url, issuer);
  switch (url.pathname) {
    case '/check': { // what a resource server asks
      const value = url.searchParams.get('token');
      seen.add(value);
      const token = await provider.AccessToken.find(value);
      const good = token && !ended.has(value) && [].concat(token.aud).includes(url.searchParams.get('resource'));
      res.writeHead(good ? 200 : 401).end();
      break;
    }
    case '/end': // every token so far; answers how many were renewed
      seen.forEach((token) => ended.add(token));
      res.end(String(renewals));
      break;
    default:
      handle(req, res);
  }
});
console.log(`issuer ${issuer}`);

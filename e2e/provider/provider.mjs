// An OpenID provider for tests, built on the certified npm package oidc-provider, so
// that coatcheck is never judged by its own development provider alone.
//
//   node provider.mjs CONFIG.json
//
// The configuration names the issuer, which must be http on a loopback port, the port to
// listen on where that is another one, the clients as RFC 7591 metadata, and the lifetime
// of access tokens; internal/testenv writes it. People: alice (in admins), bob, carol and
// u0 to u999, each with the user name as password. GET /_counts says how often each
// endpoint was asked, GET /_refreshes what became of refresh tokens, and POST /_people
// changes somebody. Signing keys are made at start and never stored.

import { strict as assert } from 'node:assert';
import { createHash, generateKeyPair, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { promisify } from 'node:util';

import Provider from 'oidc-provider';

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const issuer = new URL(config.issuer);
assert(['127.0.0.1', 'localhost'].includes(issuer.hostname), 'the issuer must be on loopback');

// Storage that keeps everything until the process ends. The package's own keeps the
// last 1000 entries, which two hundred people who sign in at once exceed.
const records = new Map();

class Storage {
  constructor(model) { this.model = model; }

  key(id) { return `${this.model}:${id}`; }

  async upsert(id, payload, expiresIn) {
    const expires = expiresIn ? Date.now() + expiresIn * 1000 : Infinity;
    records.set(this.key(id), { payload, expires });
    if (this.model === 'Session') records.set(`uid:${payload.uid}`, { payload: id, expires });
  }

  async find(id) {
    const record = records.get(this.key(id));
    return record && record.expires > Date.now() ? record.payload : undefined;
  }

  async findByUid(uid) {
    const id = records.get(`uid:${uid}`)?.payload;
    return id && this.find(id);
  }

  async consume(id) {
    records.get(this.key(id)).payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) { records.delete(this.key(id)); }

  // Called when a code or a rotated refresh token is used twice: all that came of
  // the grant ends.
  async revokeByGrantId(grantId) {
    for (const [key, { payload }] of records) {
      if (payload?.grantId === grantId) records.delete(key);
    }
  }
}

const people = /^(alice|bob|carol|u\d{1,3})$/;

// What POST /_people has said of somebody: groups, disabled.
const changes = new Map();

function change({ sub, ...fields }) {
  changes.set(sub, { ...changes.get(sub), ...fields });
  if (!fields.disabled) return;
  for (const [key, { payload }] of records) {
    if (key.startsWith('Session:') && payload.accountId === sub) records.delete(key);
  }
}

function account(sub) {
  const changed = changes.get(sub);
  if (!people.test(sub) || changed?.disabled) return undefined;
  return {
    accountId: sub,
    claims: () => ({
      sub,
      name: sub[0].toUpperCase() + sub.slice(1),
      preferred_username: sub,
      email: `${sub}@example.com`,
      email_verified: true,
      groups: changed?.groups ?? (sub === 'alice' ? ['admins', 'staff'] : ['staff']),
    }),
  };
}

// Whatever a client asks for is granted, so nobody sees a consent page, also where the
// grant that the session names was revoked.
async function grant({ oidc }) {
  const known = oidc.result?.consent?.grantId ?? oidc.session.grantIdFor(oidc.client.clientId);
  const live = known && await oidc.provider.Grant.find(known);
  if (live) return live;
  const fresh = new oidc.provider.Grant({
    clientId: oidc.client.clientId,
    accountId: oidc.session.accountId,
  });
  fresh.addOIDCScope('openid profile email groups offline_access');
  await fresh.save();
  return fresh;
}

async function signingKey(alg, type, options) {
  const { privateKey } = await promisify(generateKeyPair)(type, options);
  return { ...privateKey.export({ format: 'jwk' }), alg, use: 'sig' };
}

const provider = new Provider(config.issuer, {
  adapter: Storage,
  clients: config.clients,
  clientDefaults: { grant_types: ['authorization_code', 'refresh_token'] },
  claims: {
    openid: ['sub'],
    profile: ['name', 'preferred_username', 'groups'],
    email: ['email', 'email_verified'],
    groups: ['groups'],
  },
  // True: claims come from the userinfo endpoint. False: in the ID token as well.
  conformIdTokenClaims: config.conformIdTokenClaims,
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  features: {
    backchannelLogout: { enabled: true },
    devInteractions: { enabled: false },
    revocation: { enabled: true },
    rpInitiatedLogout: {
      enabled: true,
      logoutSource: (ctx, form) => {
        ctx.body = page('Sign out', `${form}
          <button form="op.logoutForm" name="logout" value="yes">Sign out</button>`);
      },
      postLogoutSuccessSource: (ctx) => { ctx.body = page('Signed out', ''); },
    },
  },
  // Back-channel logout goes to loopback, which the package refuses by its dispatcher, and
  // for which it waits for 2.5 s, which a busy machine may take.
  fetch: (url, { dispatcher, signal, ...options }) => fetch(url, { ...options, signal: AbortSignal.timeout(60_000) }),
  findAccount: (ctx, sub) => account(sub),
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  jwks: {
    keys: await Promise.all([
      signingKey('RS256', 'rsa', { modulusLength: 2048 }),
      signingKey('ES256', 'ec', { namedCurve: 'P-256' }),
    ]),
  },
  loadExistingGrant: grant,
  pkce: { required: () => true },
  renderError: (ctx, out) => {
    ctx.type = 'html';
    ctx.body = page('The provider refuses', `<pre>${escape(JSON.stringify(out))}</pre>`);
  },
  rotateRefreshToken: true,
  ttl: config.accessTokenLifetime ? { AccessToken: config.accessTokenLifetime } : {},
});

// How often each refresh token was redeemed, by its hash, and how many were refused. A
// request whose client is not known redeems nothing.
const redeemed = new Map();
let refused = 0;

provider.use(async (ctx, next) => {
  await next();
  const token = ctx.oidc?.route === 'token' && ctx.oidc.params?.refresh_token;
  if (!token || ctx.body?.error === 'invalid_client') return;
  const hash = createHash('sha256').update(token).digest('base64url');
  redeemed.set(hash, (redeemed.get(hash) ?? 0) + 1);
  if (ctx.status !== 200) refused += 1;
});

function refreshes() {
  let live = 0;
  let total = 0;
  let most = 0;
  for (const [key, { payload }] of records) {
    if (key.startsWith('RefreshToken:') && !payload.consumed) live += 1;
  }
  for (const uses of redeemed.values()) {
    total += uses;
    most = Math.max(most, uses);
  }
  return { total, most, refused, live };
}

function escape(text) {
  return String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

function page(title, body) {
  return `<!doctype html><html lang="en"><meta charset="utf-8">
    <title>${title}</title><h1>${title}</h1>${body}`;
}

function send(res, status, type, body) {
  res.writeHead(status, { 'Content-Type': type, 'Cache-Control': 'no-store' }).end(body);
}

function signInForm(res, status, uid, complaint) {
  send(res, status, 'text/html; charset=utf-8', page('Sign in', `<p>${escape(complaint)}</p>
    <form method="post" action="/interaction/${encodeURIComponent(uid)}">
      <label>User name <input name="username" autocomplete="username" autofocus></label>
      <label>Password <input name="password" type="password"></label>
      <button>Sign in</button>
    </form>`));
}

// interaction serves the pages that the provider leaves to its host: only the login
// prompt is left, since every grant exists already.
async function interaction(req, res) {
  const { uid, prompt } = await provider.interactionDetails(req, res);
  assert.equal(prompt.name, 'login');
  if (req.method !== 'POST') {
    signInForm(res, 200, uid, '');
    return;
  }
  const form = new URLSearchParams(await body(req));
  const name = form.get('username') ?? '';
  if (!account(name) || form.get('password') !== name) {
    signInForm(res, 401, uid, 'The user name or the password is wrong.');
    return;
  }
  await provider.interactionFinished(req, res, { login: { accountId: name } });
}

async function body(req) {
  let text = '';
  for await (const chunk of req.setEncoding('utf8')) {
    text += chunk;
    assert(text.length <= 10_000, 'the form is too long');
  }
  return text;
}

const endpoints = {
  '/.well-known/openid-configuration': 'discovery',
  '/auth': 'authorize',
  '/token': 'token',
  '/token/revocation': 'revocation',
  '/me': 'userinfo',
  '/jwks': 'jwks',
  '/session/end': 'end_session',
};
const counts = Object.fromEntries(Object.values(endpoints).map((name) => [name, 0]));
const protocol = provider.callback();

const server = createServer((req, res) => {
  const { pathname } = new URL(req.url, config.issuer);
  if (pathname === '/_counts') {
    send(res, 200, 'application/json', JSON.stringify(counts));
    return;
  }
  if (pathname === '/_refreshes') {
    send(res, 200, 'application/json', JSON.stringify(refreshes()));
    return;
  }
  if (pathname === '/_people') {
    body(req).then((text) => {
      change(JSON.parse(text));
      send(res, 200, 'application/json', '{}');
    });
    return;
  }
  if (pathname in endpoints) counts[endpoints[pathname]] += 1;
  if (!pathname.startsWith('/interaction/')) {
    protocol(req, res);
    return;
  }
  interaction(req, res).catch((err) => {
    send(res, 400, 'text/html; charset=utf-8', page('The sign-in failed', escape(err.message)));
  });
});

server.listen(config.port ?? Number(issuer.port), '127.0.0.1', () => console.log('ready', config.issuer));

process.once('SIGTERM', () => {
  server.close();
  server.closeAllConnections();
});

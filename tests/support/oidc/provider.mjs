// An OpenID provider for tests: any name signs in by the forms of its pages. Its configuration is JSON on standard input:
// port, jwks (private keys), ttl_s, clients, audience (of access tokens, which are JWTs). It prints its issuer when it listens.
import Provider from 'oidc-provider';

let said = '';
for await (const chunk of process.stdin) said += chunk;
const { port, jwks, clients, audience } = JSON.parse(said);
const issuer = `http://127.0.0.1:${port}`;

const provider = new Provider(issuer, {
  clients,
  jwks,
  cookies: { keys: ['tests'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false,
  findAccount: (_, sub) => ({
    accountId: sub,
    claims: () => ({ sub, email: `${sub}@films.example`, email_verified: sub !== 'mallory' }),
  }),
  pkce: { required: () => true },
  features: {
    resourceIndicators: {
      enabled: true,
      defaultResource: () => audience,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: '', audience, accessTokenFormat: 'jwt' }),
    },
  },
});
provider.listen(port, '127.0.0.1', () => console.log(issuer));

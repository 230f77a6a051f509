/*
 * An OAuth server that stands in for Matrix Authentication Service: registration of clients, device codes, tokens, and what
 * Synapse asks of it and is told by it.
 *
 *   node oauth_server.js PORT HOMESERVER_URL SECRET
 *
 * Two things are done without its pages. `POST /sign_in?username=…&device_id=…` signs a device in and answers with its
 * access token. `POST /approve?username=…&user_code=…` approves a device that asked for a code. Accounts are made when they
 * are named.
 */
import Provider from "oidc-provider";

const [port, homeserver, secret] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}/`;
const DEVICE = /^urn:matrix:(?:org\.matrix\.msc2967\.)?client:device:/;

const provider = new Provider(issuer, {
    clientAuthMethods: ["none"],
    clients: [{ client_id: "web", token_endpoint_auth_method: "none", redirect_uris: ["http://127.0.0.1/"] }],
    discovery: { account_management_uri: issuer },
    features: {
        devInteractions: { enabled: false },
        deviceFlow: { enabled: true },
        registration: { enabled: true },
        // A scope of Matrix names a device. The provider drops what is in no list of scopes, but for a resource server.
        resourceIndicators: {
            enabled: true,
            defaultResource: () => homeserver,
            getResourceServerInfo: (ctx) => ({ scope: ctx.oidc.params.scope }),
        },
        revocation: { enabled: true },
    },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    ttl: { AccessToken: 3600, DeviceCode: 600, Grant: 3600 },
});

async function tellSynapse(path, content) {
    const answer = await fetch(`${homeserver}/_synapse/mas/${path}`, {
        method: "POST",
        headers: { "Authorization": `Bearer ${secret}`, "Content-Type": "application/json" },
        body: JSON.stringify(content),
    });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
}

async function grant(username, clientId, scope) {
    const [device] = scope.split(" ").filter((value) => DEVICE.test(value));
    await tellSynapse("provision_user", { localpart: username });
    await tellSynapse("upsert_device", { localpart: username, device_id: device.replace(DEVICE, "") });
    const granted = new provider.Grant({ accountId: username, clientId });
    granted.addOIDCScope(scope);
    return { accountId: username, grantId: await granted.save(), scope };
}

async function signIn({ username, device_id }) {
    const client = await provider.Client.find("web");
    const scope = `urn:matrix:client:api:* urn:matrix:client:device:${device_id}`;
    const token = new provider.AccessToken({ client, ...(await grant(username, client.clientId, scope)) });
    return { access_token: await token.save(), client_id: client.clientId };
}

async function approve({ username, user_code }) {
    const code = await provider.DeviceCode.findByUserCode(user_code.replace("-", ""));
    Object.assign(code, await grant(username, code.clientId, code.params.scope));
    await code.save();
    return {};
}

async function introspect(request) {
    let content = "";
    for await (const part of request) content += part;
    const token = await provider.AccessToken.find(new URLSearchParams(content).get("token"));
    if (!token?.isValid) return { active: false };
    return { active: true, scope: token.scope, username: token.accountId, expires_in: token.remainingTTL };
}

provider.use(async (ctx, next) => {
    if (ctx.path === "/oauth2/introspect") ctx.body = await introspect(ctx.req);
    else if (ctx.path === "/sign_in") ctx.body = await signIn(ctx.query);
    else if (ctx.path === "/approve") ctx.body = await approve(ctx.query);
    else await next();
    // By default, clients would ask every five seconds whether they were approved.
    if (ctx.body?.device_code) ctx.body.interval = 1;
});
provider.listen(Number(port), "127.0.0.1");

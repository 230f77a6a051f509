/*
 * A device with matrix-js-sdk, the library of Element Web: it signs in by QR code, or lets another device do so.
 *
 *   node matrix_js_sdk.js SETTINGS
 *
 * SETTINGS is JSON: `homeserver`, its URL; `session`, if it is the device that is signed in; `shows`, whether it shows the
 * code. What a person carries from screen to screen comes and goes as lines of JSON, each an object with one name.
 */
import { createInterface } from "node:readline";

globalThis.console = new console.Console(process.stderr); // the libraries' log
const sdk = await import("matrix-js-sdk");
const { initAsync, QrCodeData } = await import("@matrix-org/matrix-sdk-crypto-wasm");
const rendezvous = await import("matrix-js-sdk/lib/rendezvous/index.js");

const { homeserver: baseUrl, session, shows } = JSON.parse(process.argv[2]);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const say = (name, value) => process.stdout.write(`${JSON.stringify({ [name]: value })}\n`);
const hear = async (name) => JSON.parse((await lines.next()).value)[name];
const fail = (reason) => {
    throw new Error(reason);
};

async function signedIn({ access_token: accessToken, user_id: userId, device_id: deviceId }) {
    const client = sdk.createClient({ baseUrl, accessToken, userId, deviceId });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient(); // otherwise, making a backup waits five seconds for the device's own keys
    return client;
}

async function showCode(client) {
    const start = session ? rendezvous.linkNewDeviceByGeneratingQR : rendezvous.signInByGeneratingQR;
    const flow = await start(client, fail, new AbortController().signal);
    say("code", Buffer.from(flow.code).toString("base64"));
    return flow;
}

async function scanCode(client) {
    const code = QrCodeData.fromBytes(Buffer.from(await hear("code"), "base64"));
    // The library tells the other device the homeserver's name here, and matrix-rust-sdk takes a URL alone.
    client.getDomain = () => baseUrl;
    const transport = new rendezvous.MSC4108RendezvousSession({ url: code.rendezvousUrl, onFailure: fail });
    const channel = new rendezvous.MSC4108SecureChannel(transport, code.publicKey, fail);
    return new rendezvous.MSC4108SignInWithQR(channel, true, session ? client : undefined, fail);
}

async function compareCheckCodes(flow) {
    if (!shows) say("check_code", flow.checkCode);
    else if ((await hear("check_code")) !== flow.checkCode) fail("another check code");
}

async function grant() {
    const client = await signedIn(session);
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: (upload) => upload(null) });
    await crypto.resetKeyBackup();
    const flow = await (shows ? showCode : scanCode)(client);
    await flow.negotiateProtocols();
    await compareCheckCodes(flow);
    const { verificationUri } = await flow.deviceAuthorizationGrant();
    say("verification_uri", verificationUri);
    await hear("approved");
    await flow.shareSecrets();
    say("done", {});
}

async function signIn() {
    const client = sdk.createClient({ baseUrl });
    const flow = await (shows ? showCode : scanCode)(client);
    await flow.negotiateProtocols();
    await compareCheckCodes(flow);
    const metadata = await client.getAuthMetadata();
    const clientUri = "http://127.0.0.1/";
    const clientId = await sdk.OAuth2.registerClient(metadata, { client_uri: clientUri, redirect_uris: [clientUri] });
    const device_id = "SECOND";
    await flow.deviceAuthorizationGrant({ metadata, clientId, deviceId: device_id });
    const { access_token } = await flow.completeLoginOnNewDevice({ clientId });
    const { user_id } = await sdk.createClient({ baseUrl, accessToken: access_token }).whoami();
    const { secrets } = await flow.shareSecrets();
    await flow.close();
    const crypto = (await signedIn({ access_token, user_id, device_id })).getCrypto();
    await crypto.importSecretsBundle(secrets);
    const { privateKeysCachedLocally } = await crypto.getCrossSigningStatus();
    const has_cross_signing_keys = Object.values(privateKeysCachedLocally).every(Boolean);
    const has_backup_key = (await crypto.getSessionBackupPrivateKey()) !== null;
    say("done", { access_token, device_id, has_cross_signing_keys, has_backup_key });
}

await initAsync();
await (session ? grant : signIn)();
process.exit(); // the library's timer for the session's end would keep it alive

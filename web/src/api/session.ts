import createClient, { type Middleware } from "openapi-fetch";

import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type Role = "viewer" | "operator" | "admin";

/** What went wrong, as the API tells it (RFC 9457), with what to do next. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly hint?: string,
  ) {
    super(message);
  }
}

const REFRESH = "lab-backup.refresh";
const SOON = 30_000; // milliseconds before its end a token is exchanged

let access = "";
let ends = 0;
const listeners = new Set<() => void>();

function keep(tokens: Schemas["Tokens"]): void {
  access = tokens.access_token;
  ends = Date.now() + tokens.expires_in * 1000;
  localStorage.setItem(REFRESH, tokens.refresh_token);
  for (const tell of listeners) tell();
}

/** Forget the tokens: the next page is the sign-in. */
export function forget(): void {
  access = "";
  ends = 0;
  localStorage.removeItem(REFRESH);
  for (const tell of listeners) tell();
}

export function isSignedIn(): boolean {
  return access !== "" || localStorage.getItem(REFRESH) !== null;
}

export function onSession(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Return an access token that lasts for a while. A refresh token is good once, so of all tabs one exchanges it at a time. */
export async function token(): Promise<string> {
  if (access !== "" && Date.now() < ends - SOON) return access;
  return navigator.locks.request("lab-backup.refresh", async () => {
    if (access !== "" && Date.now() < ends - SOON) return access;
    const refresh = localStorage.getItem(REFRESH);
    if (refresh === null) throw new Problem(401, "You are not signed in.");
    const answer = await fetch("/api/v1/auth/refresh", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ refresh_token: refresh }),
    });
    if (answer.status === 401) forget();
    if (!answer.ok) throw await problemOf(answer);
    keep((await answer.json()) as Schemas["Tokens"]);
    return access;
  });
}

async function problemOf(answer: Response): Promise<Problem> {
  try {
    const body = (await answer.json()) as { detail?: string; hint?: string; errors?: { field: string; message: string }[] };
    const fields = (body.errors ?? []).map((error) => `${error.field.replace(/^body\./, "")}: ${error.message}`);
    return new Problem(answer.status, [body.detail ?? answer.statusText, ...fields].join("; "), body.hint);
  } catch {
    return new Problem(answer.status, answer.statusText || `The service answered ${answer.status}.`);
  }
}

const authorize: Middleware = {
  async onRequest({ request, schemaPath }) {
    if (!/^\/api\/v1\/(auth\/login|setup)$/.test(schemaPath)) {
      request.headers.set("Authorization", `Bearer ${await token()}`);
    }
    return request;
  },
  async onResponse({ response, schemaPath }) {
    if (response.ok) return undefined;
    if (response.status === 401 && !schemaPath.startsWith("/api/v1/auth")) forget();
    throw await problemOf(response);
  },
  onError({ error }) {
    if (error instanceof Problem) return error;
    return new Problem(0, "The service does not answer.", "Look whether it runs and whether the network is there.");
  },
};

export const api = createClient<paths>({ baseUrl: "/" });
api.use(authorize);

/** Unwrap an answer: errors are thrown as Problem by then. */
export function data<T>(answer: { data?: T }): T {
  return answer.data as T;
}

export async function signIn(username: string, password: string, code?: string): Promise<void> {
  const body = { username, password, ...(code ? { code } : {}) };
  keep(data(await api.POST("/api/v1/auth/login", { body })));
}

export async function signOut(): Promise<void> {
  try {
    await api.POST("/api/v1/auth/logout");
  } finally {
    forget();
  }
}

import createCache from "@emotion/cache";
import { CacheProvider } from "@emotion/react";
import { CssBaseline, ThemeProvider } from "@mui/material";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { lazy, StrictMode, useSyncExternalStore } from "react";
import { createRoot } from "react-dom/client";
import { BrowserRouter, Route, Routes } from "react-router";

import { isSignedIn, onSession, Problem } from "./api/session";
import { Setup } from "./app/Setup";
import { Shell } from "./app/Shell";
import { SignIn } from "./app/SignIn";
import { theme } from "./app/theme";
import { Dashboard } from "./pages/Dashboard";
import { TextsProvider } from "./texts";

const Sources = lazy(() => import("./pages/Sources"));
const Backups = lazy(() => import("./pages/Backups"));
const Backup = lazy(() => import("./pages/Backup"));
const Jobs = lazy(() => import("./pages/Jobs"));
const Job = lazy(() => import("./pages/Job"));
const Schedules = lazy(() => import("./pages/Schedules"));
const Storage = lazy(() => import("./pages/Storage"));
const Reports = lazy(() => import("./pages/Reports"));
const Inbox = lazy(() => import("./pages/Inbox"));
const Users = lazy(() => import("./pages/Users"));
const Audit = lazy(() => import("./pages/Audit"));
const Settings = lazy(() => import("./pages/Settings"));
const Missing = lazy(() => import("./pages/Missing"));

const nonce = document.querySelector<HTMLMetaElement>("meta[name=style-nonce]")?.content ?? "";
const cache = createCache({ key: "lb", nonce });
const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5000,
      // What the service refuses it refuses again.
      retry: (count, error) => count < 2 && !(error instanceof Problem && error.status >= 400 && error.status < 500),
    },
  },
});

function App() {
  const signedIn = useSyncExternalStore(onSession, isSignedIn);
  return (
    <Routes>
      <Route path="/setup" element={<Setup />} />
      {signedIn ? (
        <Route element={<Shell />}>
          <Route index element={<Dashboard />} />
          <Route path="sources" element={<Sources />} />
          <Route path="backups" element={<Backups />} />
          <Route path="backups/:id" element={<Backup />} />
          <Route path="jobs" element={<Jobs />} />
          <Route path="jobs/:id" element={<Job />} />
          <Route path="schedules" element={<Schedules />} />
          <Route path="storage" element={<Storage />} />
          <Route path="reports" element={<Reports />} />
          <Route path="inbox" element={<Inbox />} />
          <Route path="users" element={<Users />} />
          <Route path="audit" element={<Audit />} />
          <Route path="settings" element={<Settings />} />
          <Route path="*" element={<Missing />} />
        </Route>
      ) : (
        <Route path="*" element={<SignIn />} />
      )}
    </Routes>
  );
}

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <CacheProvider value={cache}>
        <ThemeProvider theme={theme} noSsr>
          <CssBaseline />
          <TextsProvider>
            <QueryClientProvider client={queries}>
              <BrowserRouter>
                <App />
              </BrowserRouter>
            </QueryClientProvider>
          </TextsProvider>
        </ThemeProvider>
      </CacheProvider>
    </StrictMode>,
  );
}

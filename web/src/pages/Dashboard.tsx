import { Alert, Box, Button, Card, CardContent, LinearProgress, Link, Skeleton, Stack, Typography } from "@mui/material";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link as To } from "react-router";

import { useNews } from "../api/live";
import { api, data, type Schemas } from "../api/session";
import { bytes } from "../parts/format";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Progress, Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

const DAY = 86_400_000;

/** What is protected, what is not, what runs, and what went wrong. */
export function Dashboard() {
  const { t } = useTexts();
  const { news, connected } = useNews();
  const sources = useQuery({ queryKey: ["status"], queryFn: async () => data(await api.GET("/api/v1/reports/backup-status")) as Schemas["ProtectionShown"][] });
  const storages = useQuery({ queryKey: ["storage"], queryFn: async () => data(await api.GET("/api/v1/storage", { params: { query: { limit: 20 } } })).items });
  const running = useQuery({
    queryKey: ["jobs", "running"],
    queryFn: async () => data(await api.GET("/api/v1/jobs", { params: { query: { status: "running", limit: 10 } } })).items,
    refetchInterval: 10_000,
  });
  const failed = useQuery({
    queryKey: ["jobs", "failed"],
    queryFn: async () => data(await api.GET("/api/v1/jobs", { params: { query: { status: "failed", limit: 5 } } })).items,
  });
  const now = sources.dataUpdatedAt;
  const fresh = (sources.data ?? []).filter((source) => source.last_backup && now - Date.parse(source.last_backup) < 2 * DAY);
  const bare = (sources.data ?? []).filter((source) => !fresh.includes(source));
  return (
    <Page title={t.dashboard}>
      <Trouble error={sources.error ?? storages.error ?? running.error} again={() => void sources.refetch()} />
      {!connected && running.data && (
        <Alert severity="info" sx={{ mb: 2 }}>
          {t.offline}
        </Alert>
      )}
      {storages.data?.length === 0 && (
        <Empty text={t.noStorage} action={<Button variant="contained" component={To} to="/storage?first=1">{t.firstStorage}</Button>} />
      )}
      <Box sx={{ display: "grid", gap: 2, gridTemplateColumns: { xs: "1fr", md: "repeat(2, 1fr)", xl: "repeat(3, 1fr)" } }}>
        <Block title={`${t.protectedSources}: ${fresh.length} ${t.ofDisk} ${sources.data?.length ?? "…"}`} loading={sources.isPending}>
          <LinearProgress
            variant="determinate"
            color={bare.length ? "warning" : "success"}
            aria-label={t.protectedSources}
            value={sources.data?.length ? (100 * fresh.length) / sources.data.length : 0}
            sx={{ height: 10, borderRadius: 5, mb: 2 }}
          />
          {sources.data?.length === 0 && <Empty text={t.noSources} action={<Button component={To} to="/sources">{t.addHost}</Button>} />}
          {bare.length > 0 && <Typography variant="h3" sx={{ fontSize: "1rem", mb: 1 }}>{t.unprotected}</Typography>}
          <Stack spacing={0.75}>
            {bare.slice(0, 8).map((source) => (
              <Row key={source.source_id} left={<Link component={To} to={`/sources?kind=${source.source_type}`}>{source.name}</Link>} right={<Moment at={source.last_backup} />} />
            ))}
            {bare.length > 8 && <Link component={To} to="/sources">+ {bare.length - 8}</Link>}
          </Stack>
        </Block>
        <Block title={t.running} loading={running.isPending}>
          {running.data?.length === 0 && <Typography color="text.secondary">{t.none}</Typography>}
          <Stack spacing={1.5}>
            {running.data?.map((job) => (
              <Box key={job.id}>
                <Link component={To} to={`/jobs/${job.id}`}>{job.title}</Link>
                <Progress progress={news[job.id]?.progress ?? job.progress} />
              </Box>
            ))}
          </Stack>
        </Block>
        <Block title={t.failed} loading={failed.isPending}>
          {failed.data?.length === 0 && <Typography color="text.secondary">{t.none}</Typography>}
          <Stack spacing={1.5}>
            {failed.data?.map((job) => (
              <Box key={job.id}>
                <Row left={<Link component={To} to={`/jobs/${job.id}`}>{job.title}</Link>} right={<Moment at={job.completed_at} />} />
                <Typography variant="body2" color="text.secondary">{[job.error, job.hint].filter(Boolean).join(" – ")}</Typography>
              </Box>
            ))}
          </Stack>
        </Block>
        <Block title={t.storage} loading={storages.isPending}>
          <Stack spacing={1.5}>
            {storages.data?.map((storage) => (
              <Box key={storage.id}>
                <Row left={<Link component={To} to="/storage">{storage.name}</Link>} right={storage.problem ? <Status value="failed" /> : `${bytes(storage.used)}${storage.capacity ? ` ${t.ofDisk} ${bytes(storage.capacity)}` : ""}`} />
                {storage.problem && <Typography variant="body2" color="error">{storage.problem}</Typography>}
                {!storage.problem && storage.capacity && storage.used !== null && (
                  <LinearProgress variant="determinate" aria-label={storage.name} value={Math.min(100, (100 * storage.used) / storage.capacity)} />
                )}
              </Box>
            ))}
          </Stack>
        </Block>
      </Box>
    </Page>
  );
}

function Block({ title, loading, children }: { title: string; loading: boolean; children: ReactNode }) {
  return (
    <Card variant="outlined">
      <CardContent>
        <Typography variant="h2" sx={{ mb: 1.5 }}>{title}</Typography>
        {loading ? <Skeleton variant="rounded" height={72} /> : children}
      </CardContent>
    </Card>
  );
}

function Row({ left, right }: { left: ReactNode; right: ReactNode }) {
  return (
    <Stack direction="row" spacing={2} sx={{ justifyContent: "space-between" }}>
      <Box sx={{ minWidth: 0, overflowWrap: "anywhere" }}>{left}</Box>
      <Typography component="span" variant="body2" color="text.secondary" sx={{ whiteSpace: "nowrap" }}>{right}</Typography>
    </Stack>
  );
}

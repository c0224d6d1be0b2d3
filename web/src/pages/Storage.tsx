import { Box, Button, Card, CardContent, Checkbox, Dialog, DialogActions, DialogContent, DialogTitle, FormControlLabel, LinearProgress, Skeleton, Stack, TextField, Typography } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useNavigate, useSearchParams } from "react-router";

import { api, data, type Schemas } from "../api/session";
import { useMe } from "../app/me";
import { bytes } from "../parts/format";
import { Empty, Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

/** The places that backups are in. */
export default function Storage() {
  const { t } = useTexts();
  const { may } = useMe();
  const [search, setSearch] = useSearchParams();
  const [adding, setAdding] = useState(search.get("first") === "1");
  const storages = useQuery({ queryKey: ["storage"], queryFn: async () => data(await api.GET("/api/v1/storage", { params: { query: { limit: 100 } } })).items });
  const add = () => { setAdding(true); };
  return (
    <Page title={t.storage} actions={may("admin") && <Button variant="contained" onClick={add}>{t.firstStorage}</Button>}>
      <Trouble error={storages.error} again={() => void storages.refetch()} />
      {storages.isPending && <Skeleton variant="rounded" height={120} />}
      {storages.data?.length === 0 && <Empty text={t.noStorage} action={may("admin") && <Button variant="outlined" onClick={add}>{t.firstStorage}</Button>} />}
      <Box sx={{ display: "grid", gap: 2, gridTemplateColumns: { xs: "1fr", lg: "repeat(2, 1fr)" } }}>
        {storages.data?.map((row) => <Place key={row.id} row={row} />)}
      </Box>
      {adding && <Add close={() => { setAdding(false); setSearch({}); }} />}
    </Page>
  );
}

function Place({ row }: { row: Schemas["StorageShown"] }) {
  const { t } = useTexts();
  const { may } = useMe();
  const go = useNavigate();
  const [sheet, setSheet] = useState<string>();
  const path = { params: { path: { storage_id: row.id } } };
  const usage = useQuery({ queryKey: ["storage", row.id, "usage"], queryFn: async () => data(await api.GET("/api/v1/storage/{storage_id}/usage", path)) });
  const verify = useMutation({ mutationFn: async () => data(await api.POST("/api/v1/storage/{storage_id}/verify", path)), onSuccess: (job) => go(`/jobs/${job.id}`) });
  const collect = useMutation({ mutationFn: async () => data(await api.POST("/api/v1/storage/{storage_id}/gc", path)), onSuccess: (job) => go(`/jobs/${job.id}`) });
  const print = useMutation({ mutationFn: async () => data(await api.POST("/api/v1/storage/{storage_id}/recovery-sheet", path)), onSuccess: (found) => { setSheet(found.text); } });
  const share = usage.data?.capacity && usage.data.used !== null ? (100 * usage.data.used) / usage.data.capacity : undefined;
  return (
    <Card variant="outlined">
      <CardContent>
        <Stack direction="row" sx={{ justifyContent: "space-between", mb: 1 }}>
          <Typography variant="h2">{row.name}</Typography>
          {row.problem && <Status value="failed" />}
        </Stack>
        <Typography variant="body2" color="text.secondary" sx={{ overflowWrap: "anywhere", mb: 1 }}>{row.url}</Typography>
        {row.problem && <Trouble error={new Error(row.problem)} />}
        <Typography variant="body2">
          {t.used}: {bytes(usage.data?.used ?? row.used)}{usage.data?.capacity ? ` ${t.ofDisk} ${bytes(usage.data.capacity)}` : ""}
          {usage.data?.growth ? ` · ${t.growth}: ${bytes(usage.data.growth)}` : ""}
          {usage.data?.full_on ? ` · ${t.fullOn} ${usage.data.full_on}` : ""}
        </Typography>
        {share !== undefined && <LinearProgress variant="determinate" aria-label={`${t.used}: ${row.name}`} color={share >= row.threshold ? "warning" : "primary"} value={Math.min(100, share)} sx={{ my: 1 }} />}
        <Trouble error={verify.error ?? collect.error ?? print.error} />
        <Stack direction="row" useFlexGap sx={{ flexWrap: "wrap", mt: 1 }}>
          {may("operator") && <Button size="small" onClick={() => { verify.mutate(); }}>{t.verify}</Button>}
          {may("admin") && <Button size="small" onClick={() => { collect.mutate(); }}>{t.collect}</Button>}
          {may("admin") && row.encrypted && <Button size="small" onClick={() => { print.mutate(); }}>{t.recoverySheet}</Button>}
        </Stack>
      </CardContent>
      {sheet && (
        <Dialog open onClose={() => { setSheet(undefined); }} maxWidth="md">
          <DialogTitle>{t.recoverySheet}</DialogTitle>
          <DialogContent><Typography component="pre" sx={{ fontFamily: "monospace", fontSize: 13, whiteSpace: "pre-wrap" }}>{sheet}</Typography></DialogContent>
          <DialogActions><Button onClick={() => { setSheet(undefined); }}>{t.close}</Button></DialogActions>
        </Dialog>
      )}
    </Card>
  );
}

/** A new storage, tried out before it is kept. */
function Add({ close }: { close: () => void }) {
  const { t } = useTexts();
  const queries = useQueryClient();
  const [name, setName] = useState("");
  const [url, setUrl] = useState("/srv/backups");
  const [passphrase, setPassphrase] = useState("");
  const [plain, setPlain] = useState(false);
  const [existing, setExisting] = useState(false);
  const [key, setKey] = useState("");
  const [secret, setSecret] = useState("");
  const kind = url.split("://")[0];
  const body = {
    name: name || "storage",
    url,
    passphrase: plain ? null : passphrase,
    existing,
    chunk_size: 131_072,
    compression: "zstd:3",
    threshold: 80,
    at_once: 0,
    ...(kind === "s3" && key ? { credentials: { access_key: key, secret_key: secret } } : {}),
    ...(kind === "smb" && secret ? { credentials: { password: secret } } : {}),
  };
  const test = useMutation({ mutationFn: async () => data(await api.POST("/api/v1/storage/test", { body: { ...body, passphrase: null } })) });
  const add = useMutation({
    mutationFn: () => api.POST("/api/v1/storage", { body }),
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ["storage"] });
      close();
    },
  });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="sm">
      <DialogTitle>{t.firstStorage}</DialogTitle>
      <DialogContent>
        <TextField fullWidth margin="dense" required autoFocus label={t.name} value={name} onChange={(event) => { setName(event.target.value); }} />
        <TextField fullWidth margin="dense" required label={t.address} value={url} helperText="/srv/backups · s3://bucket/prefix?endpoint=https://host · smb://user@host/share · nfs://host/export" onChange={(event) => { setUrl(event.target.value); test.reset(); }} />
        {kind === "s3" && <TextField fullWidth margin="dense" label={t.accessKey} value={key} autoComplete="off" onChange={(event) => { setKey(event.target.value); }} />}
        {(kind === "s3" || kind === "smb") && <TextField fullWidth margin="dense" type="password" label={kind === "s3" ? t.secretKey : t.password} value={secret} autoComplete="off" onChange={(event) => { setSecret(event.target.value); }} />}
        {!plain && <TextField fullWidth margin="dense" required type="password" label={t.passphrase} value={passphrase} autoComplete="new-password" onChange={(event) => { setPassphrase(event.target.value); }} />}
        <Stack>
          <FormControlLabel control={<Checkbox checked={existing} onChange={(event) => { setExisting(event.target.checked); }} />} label={t.adopt} />
          <FormControlLabel control={<Checkbox checked={plain} onChange={(event) => { setPlain(event.target.checked); }} />} label={t.notEncrypted} />
        </Stack>
        {test.data && (
          <Stack component="ul" sx={{ pl: 3, my: 1 }}>
            {test.data.checks.map((check) => (
              <Typography key={check.name} component="li" variant="body2" color={check.outcome === "failed" ? "error" : check.outcome === "warning" ? "warning.main" : "text.secondary"}>
                {check.name}: {[check.detail, check.hint].filter(Boolean).join(" – ")}
              </Typography>
            ))}
          </Stack>
        )}
        <Trouble error={add.error ?? test.error} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button disabled={test.isPending} onClick={() => { test.mutate(); }}>{t.test}</Button>
        <Button variant="contained" disabled={!name || !url || (!plain && !passphrase) || add.isPending} onClick={() => { add.mutate(); }}>{t.add}</Button>
      </DialogActions>
    </Dialog>
  );
}


import { Alert, Box, Button, Card, CardContent, Checkbox, Dialog, DialogActions, DialogContent, DialogTitle, FormControlLabel, Link, MenuItem, Skeleton, Stack, TextField, Typography } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useNavigate, useParams } from "react-router";

import { api, data, type Schemas, token } from "../api/session";
import { useMe } from "../app/me";
import { bytes } from "../parts/format";
import { Moment } from "../parts/Moment";
import { Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

type Shown = Schemas["BackupShown"];
type Action = "verify" | "protect" | "unprotect" | "undelete" | "delete";

/** One backup: what it is, what is in it, and what can be done with it. */
export default function Backup() {
  const { id = "" } = useParams();
  const { t } = useTexts();
  const { may } = useMe();
  const go = useNavigate();
  const queries = useQueryClient();
  const [restoring, setRestoring] = useState(false);
  const path = { params: { path: { backup_id: id } } };
  const backup = useQuery({ queryKey: ["backups", id], queryFn: async () => data(await api.GET("/api/v1/backups/{backup_id}", path)) });
  const act = useMutation({
    mutationFn: async (action: Action) => {
      switch (action) {
        case "verify": return data(await api.POST("/api/v1/backups/{backup_id}/verify", path));
        case "protect": return data(await api.POST("/api/v1/backups/{backup_id}/protect", path));
        case "unprotect": return data(await api.DELETE("/api/v1/backups/{backup_id}/protect", path));
        case "undelete": return data(await api.POST("/api/v1/backups/{backup_id}/undelete", path));
        case "delete": return data(await api.DELETE("/api/v1/backups/{backup_id}", path));
      }
    },
    onSuccess: async (job) => {
      await queries.invalidateQueries({ queryKey: ["backups"] });
      await go(`/jobs/${job.id}`);
    },
  });
  if (backup.error) return <Trouble error={backup.error} again={() => void backup.refetch()} />;
  if (!backup.data) return <Skeleton variant="rounded" height={240} />;
  const row = backup.data;
  const facts: [string, React.ReactNode][] = [
    [t.kind, `${row.source_type}, ${row.backup_type}, ${row.consistency}`],
    [t.time, <Moment key="time" at={row.completed_at} exact />],
    [t.verified, <Moment key="verified" at={row.verified_at} />],
    [t.size, `${bytes(row.size)}, ${bytes(row.compressed_size)} ${t.stored}`],
  ];
  const warnings = (row.metadata.warnings as string[] | undefined) ?? [];
  return (
    <Page
      title={row.source_name}
      actions={
        may("operator") && (
          <>
            <Button variant="contained" disabled={row.deleted_at !== null} onClick={() => { setRestoring(true); }}>{t.restore}</Button>
            <Button variant="outlined" disabled={act.isPending} onClick={() => { act.mutate("verify"); }}>{t.verify}</Button>
            <Button variant="outlined" disabled={act.isPending} onClick={() => { act.mutate(row.protected ? "unprotect" : "protect"); }}>{row.protected ? t.unprotect : t.protect}</Button>
            <Button color="error" variant="outlined" disabled={act.isPending || row.protected} onClick={() => { act.mutate(row.deleted_at ? "undelete" : "delete"); }}>{row.deleted_at ? t.undelete : t.delete}</Button>
          </>
        )
      }
    >
      <Trouble error={act.error} />
      {warnings.map((warning) => <Alert key={warning} severity="warning" sx={{ mb: 1 }}>{warning}</Alert>)}
      <Card variant="outlined" sx={{ mb: 2 }}>
        <CardContent>
          <Stack direction="row" useFlexGap spacing={1} sx={{ mb: 1, flexWrap: "wrap" }}>
            <Status value={row.status} />
            {row.protected && <Status value="protected" />}
            {row.tags.map((tag) => <Status key={tag} value={tag} />)}
          </Stack>
          <Box component="dl" sx={{ display: "grid", gridTemplateColumns: "max-content 1fr", columnGap: 3, rowGap: 0.5, m: 0 }}>
            {facts.map(([name, value]) => (
              <Box key={name} sx={{ display: "contents" }}>
                <Typography component="dt" variant="body2" color="text.secondary">{name}</Typography>
                <Typography component="dd" variant="body2" sx={{ m: 0 }}>{value}</Typography>
              </Box>
            ))}
          </Box>
          <Typography variant="caption" color="text.secondary" sx={{ overflowWrap: "anywhere" }}>{row.backup_id}</Typography>
        </CardContent>
      </Card>
      {may("operator") && row.source_type !== "vm" && <Files backup={row} />}
      {restoring && <Restore backup={row} close={() => { setRestoring(false); }} />}
    </Page>
  );
}

/** Fetch a download with the token in its header, which so stands in no address, and hand it to the browser as a file. */
async function save(address: string, name: string): Promise<void> {
  const answer = await fetch(address, { headers: { Authorization: `Bearer ${await token()}` } });
  if (!answer.ok) throw new Error(((await answer.json()) as { detail: string }).detail);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function Files({ backup }: { backup: Shown }) {
  const { t } = useTexts();
  const trees = (backup.metadata.trees as string[] | undefined) ?? [];
  const [place, setPlace] = useState("");
  const [chosen, setChosen] = useState("");
  const volume = chosen || (trees.find((name) => name !== "rootfs") ?? trees[0] ?? "");
  const query = { ...(volume ? { volume } : {}), path: place };
  const files = useQuery({
    queryKey: ["files", backup.id, volume, place],
    enabled: trees.length > 0,
    queryFn: async () => data(await api.GET("/api/v1/backups/{backup_id}/files", { params: { path: { backup_id: backup.id }, query } })),
  });
  const download = useMutation({
    mutationFn: (path: string) => {
      const search = new URLSearchParams({ path, ...(volume ? { volume } : {}) });
      return save(`/api/v1/backups/${backup.id}/files/download?${search.toString()}`, path.split("/").pop() ?? "file");
    },
  });
  return (
    <Card variant="outlined">
      <CardContent>
        <Stack direction="row" spacing={2} useFlexGap sx={{ mb: 1, alignItems: "center", flexWrap: "wrap" }}>
          <Typography variant="h2" sx={{ flexGrow: 1 }}>{t.browse}</Typography>
          {trees.length > 1 && (
            <TextField select size="small" label={t.volume} value={volume} onChange={(event) => { setPlace(""); setChosen(event.target.value); }}>
              {trees.map((name) => <MenuItem key={name} value={name}>{name}</MenuItem>)}
            </TextField>
          )}
          {place && <Button onClick={() => { setPlace(place.split("/").slice(0, -1).join("/")); }}>{t.folderUp}</Button>}
        </Stack>
        <Typography variant="body2" color="text.secondary">/{place}</Typography>
        <Trouble error={files.error ?? download.error} again={() => void files.refetch()} />
        <Stack component="ul" sx={{ listStyle: "none", p: 0, m: 0 }}>
          {files.data?.map((file) => (
            <Stack key={file.path} component="li" direction="row" spacing={2} sx={{ py: 0.5, borderBottom: 1, borderColor: "divider", alignItems: "center" }}>
              <Box sx={{ flexGrow: 1, minWidth: 0, overflowWrap: "anywhere" }}>
                {file.kind === "directory" ? (
                  <Link component="button" onClick={() => { setPlace(file.path); }}>{file.path.split("/").pop()}/</Link>
                ) : (
                  file.path.split("/").pop()
                )}
              </Box>
              <Typography variant="body2" color="text.secondary">{file.kind === "file" ? bytes(file.size) : file.kind}</Typography>
              {["file", "directory"].includes(file.kind) && (
                <Button size="small" disabled={download.isPending} aria-label={`${t.download}: ${file.path}`} onClick={() => { download.mutate(file.path); }}>{t.download}</Button>
              )}
            </Stack>
          ))}
        </Stack>
      </CardContent>
    </Card>
  );
}

/** Everything about a restore before it begins: where to, under which name, and what would be lost. */
function Restore({ backup, close }: { backup: Shown; close: () => void }) {
  const { t } = useTexts();
  const go = useNavigate();
  const kvm = backup.source_type === "vm";
  const [host, setHost] = useState("");
  const [name, setName] = useState(backup.source_type === "volume" ? `${backup.source_name}-restored` : "");
  const [start, setStart] = useState(false);
  const [overwrite, setOverwrite] = useState(false);
  const [confirm, setConfirm] = useState("");
  const [dry, setDry] = useState(false);
  const hosts = useQuery({
    queryKey: ["hosts", kvm],
    queryFn: async () => data(await (kvm ? api.GET("/api/v1/kvm/hosts", { params: { query: { limit: 100 } } }) : api.GET("/api/v1/podman/hosts", { params: { query: { limit: 100 } } }))).items,
  });
  const target = name || backup.source_name;
  const chosen = host || (hosts.data?.[0]?.id ?? "");
  const begin = useMutation({
    mutationFn: async () => {
      const suffix = !kvm && name && backup.source_type !== "volume" ? { volume_suffix: `-${name}` } : {};
      const body = { ...(chosen ? { host: chosen } : {}), ...(name ? { name } : {}), overwrite, ...(overwrite ? { confirm } : {}), start, dry_run: dry, trusted: false, ...suffix };
      return data(await api.POST("/api/v1/backups/{backup_id}/restore", { params: { path: { backup_id: backup.id } }, body }));
    },
    onSuccess: (job) => go(`/jobs/${job.id}`),
  });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="sm">
      <DialogTitle>{t.restoreTitle}</DialogTitle>
      <DialogContent>
        <Typography sx={{ mb: 1 }}>{backup.source_name} · <Moment at={backup.completed_at} exact /></Typography>
        {hosts.data && hosts.data.length > 0 && (
          <TextField select fullWidth margin="dense" label={t.host} value={chosen} onChange={(event) => { setHost(event.target.value); }}>
            {hosts.data.map((each) => <MenuItem key={each.id} value={each.id}>{each.name}</MenuItem>)}
          </TextField>
        )}
        <TextField fullWidth margin="dense" label={t.newName} helperText={t.newNameHelp} value={name} onChange={(event) => { setName(event.target.value); }} />
        <Stack>
          {backup.source_type !== "volume" && <FormControlLabel control={<Checkbox checked={start} onChange={(event) => { setStart(event.target.checked); }} />} label={t.startAfter} />}
          {!["vm", "volume"].includes(backup.source_type) && <FormControlLabel control={<Checkbox checked={dry} onChange={(event) => { setDry(event.target.checked); }} />} label={t.dryRun} />}
          {backup.source_type !== "volume" && <FormControlLabel control={<Checkbox checked={overwrite} color="error" onChange={(event) => { setOverwrite(event.target.checked); }} />} label={`${t.overwrite}: ${target}`} />}
        </Stack>
        {overwrite && <TextField fullWidth margin="dense" color="error" label={target} helperText={t.overwriteHelp} value={confirm} onChange={(event) => { setConfirm(event.target.value); }} />}
        <Trouble error={begin.error ?? hosts.error} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button variant="contained" color={overwrite ? "error" : "primary"} disabled={begin.isPending || (overwrite && confirm !== target)} onClick={() => { begin.mutate(); }}>{dry ? t.dryRun : t.restore}</Button>
      </DialogActions>
    </Dialog>
  );
}

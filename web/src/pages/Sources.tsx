import { Button, Dialog, DialogActions, DialogContent, DialogTitle, MenuItem, Stack, Tab, Tabs, TextField } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link as To, useNavigate, useSearchParams } from "react-router";

import { api, data, type Schemas } from "../api/session";
import { useMe } from "../app/me";
import { List } from "../parts/List";
import { bytes } from "../parts/format";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

type Kind = "vm" | "container" | "pod" | "volume";
const KINDS: Kind[] = ["vm", "container", "pod", "volume"];
const PATHS = { vm: "/api/v1/kvm/vms", container: "/api/v1/podman/containers", pod: "/api/v1/podman/pods", volume: "/api/v1/podman/volumes" } as const;

interface Row {
  id: string;
  name: string;
  state: string;
  seen_at: string;
  about: string;
}

async function load(kind: Kind, cursor: string | undefined): Promise<{ items: Row[]; next: string | null }> {
  const query = { params: { query: cursor ? { cursor } : {} } };
  if (kind === "vm") {
    const found = data(await api.GET(PATHS.vm, query));
    return { next: found.next, items: found.items.map((row) => ({ ...row, about: `${row.vcpus} CPU, ${bytes(row.memory)}, ${bytes(row.disk_size)}` })) };
  }
  if (kind === "container") {
    const found = data(await api.GET(PATHS.container, query));
    return { next: found.next, items: found.items.map((row) => ({ ...row, about: [row.image, row.pod].filter(Boolean).join(", ") })) };
  }
  if (kind === "pod") {
    const found = data(await api.GET(PATHS.pod, query));
    return { next: found.next, items: found.items.map((row) => ({ ...row, about: String(row.containers) })) };
  }
  const found = data(await api.GET(PATHS.volume, query));
  return { next: found.next, items: found.items.map((row) => ({ ...row, about: row.driver })) };
}

/** What there is to back up, by kind, and the hosts that it is on. */
export default function Sources() {
  const { t } = useTexts();
  const { may } = useMe();
  const [search, setSearch] = useSearchParams();
  const kind = (KINDS as string[]).includes(search.get("kind") ?? "") ? (search.get("kind") as Kind) : "vm";
  const [chosen, setChosen] = useState<Row>();
  const [adding, setAdding] = useState(false);
  return (
    <Page title={t.sources} actions={may("admin") && <Button variant="outlined" onClick={() => { setAdding(true); }}>{t.addHost}</Button>}>
      <Tabs value={kind} onChange={(_, value: Kind) => { setSearch({ kind: value }); }} sx={{ mb: 2 }} aria-label={t.kind}>
        <Tab value="vm" label="VMs" />
        <Tab value="container" label="Container" />
        <Tab value="pod" label="Pods" />
        <Tab value="volume" label="Volumes" />
      </Tabs>
      <List<Row>
        key={kind}
        label={t.sources}
        name={["sources", kind]}
        load={(cursor) => load(kind, cursor)}
        empty={<Empty text={t.noSources} action={may("admin") && <Button variant="contained" onClick={() => { setAdding(true); }}>{t.addHost}</Button>} />}
        columns={[
          { title: t.name, cell: (row) => row.name },
          { title: t.state, cell: (row) => <Status value={row.state} /> },
          { title: t.details, wide: true, cell: (row) => row.about },
          { title: t.time, wide: true, cell: (row) => <Moment at={row.seen_at} /> },
          {
            title: "",
            numeric: true,
            cell: (row) => (
              <Stack direction="row" sx={{ justifyContent: "flex-end" }}>
                <Button size="small" component={To} to={`/backups?source=${encodeURIComponent(row.name)}`}>{t.backups}</Button>
                {may("operator") && <Button size="small" onClick={() => { setChosen(row); }}>{t.backUpNow}</Button>}
              </Stack>
            ),
          },
        ]}
      />
      {chosen && <BackUp kind={kind} row={chosen} close={() => { setChosen(undefined); }} />}
      {adding && <AddHost close={() => { setAdding(false); }} />}
    </Page>
  );
}

function BackUp({ kind, row, close }: { kind: Kind; row: Row; close: () => void }) {
  const { t } = useTexts();
  const go = useNavigate();
  const storages = useQuery({ queryKey: ["storage"], queryFn: async () => data(await api.GET("/api/v1/storage", { params: { query: { limit: 100 } } })).items });
  const [storage, setStorage] = useState("");
  const chosen = storage || (storages.data?.[0]?.id ?? "");
  const start = useMutation({
    mutationFn: async () => data(await api.POST("/api/v1/backups", { body: { source_type: kind, source_id: row.id, storage_backend_id: chosen, full: false } })),
    onSuccess: (job) => go(`/jobs/${job.id}`),
  });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="xs">
      <DialogTitle>{t.backUpNow}: {row.name}</DialogTitle>
      <DialogContent>
        {storages.data?.length === 0 && <Empty text={t.noStorage} action={<Button component={To} to="/storage?first=1">{t.firstStorage}</Button>} />}
        {storages.data && storages.data.length > 0 && (
          <TextField select fullWidth margin="dense" label={t.storage} value={chosen} onChange={(event) => { setStorage(event.target.value); }}>
            {storages.data.map((each) => <MenuItem key={each.id} value={each.id}>{each.name}</MenuItem>)}
          </TextField>
        )}
        <Trouble error={start.error ?? storages.error} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button variant="contained" disabled={!chosen || start.isPending} onClick={() => { start.mutate(); }}>{t.backUpNow}</Button>
      </DialogActions>
    </Dialog>
  );
}

function AddHost({ close }: { close: () => void }) {
  const { t } = useTexts();
  const queries = useQueryClient();
  const [kind, setKind] = useState<"kvm" | "podman">("kvm");
  const [name, setName] = useState("");
  const [uri, setUri] = useState("");
  const [found, setFound] = useState<Schemas["HostTest"]>();
  const add = useMutation({
    mutationFn: async () => {
      const body = { name, uri, enabled: true, at_once: 0 };
      if (kind === "kvm") {
        const host = data(await api.POST("/api/v1/kvm/hosts", { body }));
        return data(await api.POST("/api/v1/kvm/hosts/{host_id}/test", { params: { path: { host_id: host.id } } }));
      }
      const host = data(await api.POST("/api/v1/podman/hosts", { body }));
      return data(await api.POST("/api/v1/podman/hosts/{host_id}/test", { params: { path: { host_id: host.id } } }));
    },
    onSuccess: (result) => {
      void queries.invalidateQueries({ queryKey: ["sources"] });
      if (result.ok) close();
      else setFound(result);
    },
  });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="sm">
      <DialogTitle>{t.addHost}</DialogTitle>
      <DialogContent>
        <TextField select fullWidth margin="dense" label={t.kind} value={kind} onChange={(event) => { setKind(event.target.value as "kvm" | "podman"); }}>
          <MenuItem value="kvm">libvirt</MenuItem>
          <MenuItem value="podman">Podman</MenuItem>
        </TextField>
        <TextField fullWidth margin="dense" required label={t.name} value={name} onChange={(event) => { setName(event.target.value); }} />
        <TextField fullWidth margin="dense" required label={t.uri} value={uri} placeholder={kind === "kvm" ? "qemu+ssh://root@kvm7/system" : "unix:///run/podman/podman.sock"} onChange={(event) => { setUri(event.target.value); }} />
        <Trouble error={add.error ?? (found ? new Error([found.detail, found.hint].filter(Boolean).join(" – ")) : undefined)} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button variant="contained" disabled={!name || !uri || add.isPending || found !== undefined} onClick={() => { add.mutate(); }}>{t.add}</Button>
      </DialogActions>
    </Dialog>
  );
}

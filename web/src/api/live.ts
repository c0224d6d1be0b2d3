import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { token } from "./session";

export interface News {
  job?: string;
  status: string;
  progress?: { phase?: string; done?: number; total?: number | null; rate?: number; eta?: number | null };
  error?: string | null;
}

const LONGEST_WAIT = 30_000;

/** Follow `/ws/jobs` (all) or one job; connects again by itself. Returns the newest news by job, and whether the line is up. */
export function useNews(job?: string): { news: Record<string, News>; connected: boolean } {
  const [news, setNews] = useState<Record<string, News>>({});
  const [connected, setConnected] = useState(false);
  const queries = useQueryClient();
  useEffect(() => {
    let socket: WebSocket | undefined;
    let over = false;
    let wait = 1000;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const again = () => {
      setConnected(false);
      if (over) return;
      timer = setTimeout(() => void open(), wait);
      wait = Math.min(wait * 2, LONGEST_WAIT);
    };
    const open = async () => {
      let secret: string;
      try {
        secret = await token();
      } catch {
        again();
        return;
      }
      // The cleanup may have run while the token was fetched.
       
      if (over) return;
      const scheme = window.location.protocol === "https:" ? "wss" : "ws";
      socket = new WebSocket(`${scheme}://${window.location.host}/api/v1/ws/jobs${job ? `/${job}` : ""}`);
      socket.onopen = () => {
        socket?.send(JSON.stringify({ token: secret }));
        setConnected(true);
        wait = 1000;
      };
      socket.onmessage = (event: MessageEvent<string>) => {
        const said = JSON.parse(event.data) as News;
        const about = said.job;
        if (!about) return;
        setNews((before) => ({ ...before, [about]: said }));
        if (said.status !== "running") {
          void queries.invalidateQueries({ queryKey: ["jobs"] });
          void queries.invalidateQueries({ queryKey: ["backups"] });
          void queries.invalidateQueries({ queryKey: ["status"] });
        }
      };
      socket.onclose = (event) => {
        if (event.code === 1000 && job) over = true;
        again();
      };
    };
    void open();
    return () => {
      over = true;
      clearTimeout(timer);
      socket?.close();
    };
  }, [job, queries]);
  return { news, connected };
}

import { useQuery } from "@tanstack/react-query";

import { api, data, type Role } from "../api/session";

const ORDER: Role[] = ["viewer", "operator", "admin"];

/** Return who is signed in, and whether their role includes another one: what they may not do is not shown (and refused by the service). */
export function useMe() {
  const query = useQuery({ queryKey: ["me"], queryFn: async () => data(await api.GET("/api/v1/me")), staleTime: 300_000 });
  const role = query.data?.role;
  return {
    me: query.data,
    may: (least: Role) => role !== undefined && ORDER.indexOf(role) >= ORDER.indexOf(least),
  };
}

import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { cleanup, render, screen } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { afterEach, describe, expect, it } from "vitest";

import { Problem } from "../api/session";
import { List } from "./List";

interface Row {
  id: string;
  name: string;
}

function shown(load: (cursor: string | undefined) => Promise<{ items: Row[]; next: string | null }>) {
  const queries = new QueryClient({ defaultOptions: { queries: { retry: false } } });
  render(
    <QueryClientProvider client={queries}>
      <List<Row> label="things" name={["things"]} load={load} empty={<p>nothing here</p>} columns={[{ title: "Name", cell: (row) => row.name }]} />
    </QueryClientProvider>,
  );
}

afterEach(cleanup);

describe("a list", () => {
  it("goes on from page to page, and keeps what is shown", async () => {
    const asked: (string | undefined)[] = [];
    shown((cursor) => {
      asked.push(cursor);
      return Promise.resolve(cursor ? { items: [{ id: "2", name: "second" }], next: null } : { items: [{ id: "1", name: "first" }], next: "there" });
    });
    expect(await screen.findByText("first")).toBeTruthy();
    await userEvent.click(screen.getByRole("button", { name: "More" }));
    expect(await screen.findByText("second")).toBeTruthy();
    expect(screen.getByText("first")).toBeTruthy();
    expect(screen.queryByRole("button", { name: "More" })).toBeNull();
    expect(asked).toEqual([undefined, "there"]);
  });
  it("says what to do where there is nothing", async () => {
    shown(() => Promise.resolve({ items: [], next: null }));
    expect(await screen.findByText("nothing here")).toBeTruthy();
  });
  it("shows what went wrong with its hint, and asks again", async () => {
    let failing = true;
    shown(() => (failing ? Promise.reject(new Problem(502, "the storage is away", "plug it in")) : Promise.resolve({ items: [{ id: "1", name: "back" }], next: null })));
    expect(await screen.findByText("the storage is away")).toBeTruthy();
    expect(screen.getByText("plug it in")).toBeTruthy();
    failing = false;
    await userEvent.click(screen.getByRole("button", { name: "Try again" }));
    expect(await screen.findByText("back")).toBeTruthy();
  });
});

-- The tables of the shop. Each example serves the same HTTP interface on them.
create table orders (
    id bigint generated always as identity primary key,
    customer text not null,
    total numeric(10, 2) not null
);
create table credit (
    customer text primary key,
    available numeric(10, 2) not null check (available >= 0)
);

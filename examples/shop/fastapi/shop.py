"""The shop with FastAPI and asynchronous SQLAlchemy, on asyncpg. See docs/guides.md."""

import os
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import Numeric, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from userrealtime.server import TokenKeys, aposition, apublish, atake, sign

app = FastAPI()
engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1))
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class Credit(Base):
    __tablename__ = "credit"
    customer: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class Wanted(BaseModel):
    customer: str
    total: Decimal


async def opened() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(opened)]


@app.post("/orders", status_code=201)
async def place(wanted: Wanted, session: Session) -> dict[str, int]:
    """The order, the event and the credit in one transaction: all of them or none."""
    try:
        async with session.begin():
            order = Order(customer=wanted.customer, total=wanted.total)
            session.add(order)
            await session.flush()
            await apublish(session, wanted.customer, "order.placed", {"id": order.id, "total": str(wanted.total)})
            await session.execute(
                update(Credit)
                .where(Credit.customer == wanted.customer)
                .values(available=Credit.available - wanted.total)
            )
    except IntegrityError:
        raise HTTPException(409, "the credit is too low") from None
    return {"id": order.id}


@app.get("/orders")
async def orders(customer: str, session: Session) -> dict[str, Any]:
    """State and position in one snapshot: a transaction with REPEATABLE READ."""
    await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    position = await aposition(session, customer)
    found = await session.scalars(select(Order).where(Order.customer == customer).order_by(Order.id))
    return {
        "state": [{"id": order.id, "customer": order.customer, "total": float(order.total)} for order in found],
        "position": position,
    }


@app.get("/position", response_class=PlainTextResponse)
async def log_position(customer: str, session: Session) -> str:
    return await aposition(session, customer)


@app.post("/inbox")
async def inbox(session: Session) -> dict[str, int]:
    """One pass over the inbox. In a real application a worker does this whenever it is notified."""
    async with session.begin():
        messages = await atake(session)
        for message in messages:
            await apublish(session, message.user_id, "echo", {"message": message.id, "data": message.data})
    return {"taken": len(messages)}


@app.get("/token", response_class=PlainTextResponse)
async def token(customer: str) -> str:
    keys = TokenKeys.from_directory(os.environ["TOKEN_KEYS"])  # the mounted Secret of the user
    return sign(keys, customer)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

"""The shop with Django: models of the ORM, `transaction.atomic`, PostgreSQL. See docs/guides.md."""

import json
import os
import sys
from decimal import Decimal
from urllib.parse import urlsplit
from wsgiref.simple_server import make_server

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from userrealtime.server import TokenKeys, position, publish, sign, take

DATABASE = urlsplit(os.environ["DATABASE_URL"])

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": DATABASE.path[1:],
            "HOST": DATABASE.hostname,
            "PORT": DATABASE.port or 5432,
            "USER": DATABASE.username,
            "PASSWORD": DATABASE.password or "",
        }
    },
)
django.setup()


class Order(models.Model):
    customer = models.TextField()
    total = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        app_label = "shop"
        db_table = "orders"
        managed = False


class Credit(models.Model):
    customer = models.TextField(primary_key=True)
    available = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        app_label = "shop"
        db_table = "credit"
        managed = False


def orders(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        return place(json.loads(request.body))
    customer = request.GET["customer"]
    # One statement is one snapshot. For several statements, use a transaction with REPEATABLE READ.
    with connection.cursor() as cursor:
        cursor.execute(
            "select userrealtime.position(%s), coalesce(json_agg(o order by id), '[]') "
            "from orders o where customer = %s",
            [customer, customer],
        )
        [(at, state)] = cursor.fetchall()
    return JsonResponse({"state": json.loads(state) if isinstance(state, str) else state, "position": at})


def place(wanted: dict) -> HttpResponse:
    """The order, the event and the credit in one transaction: all of them or none."""
    customer, total = wanted["customer"], Decimal(wanted["total"])
    try:
        with transaction.atomic():
            order = Order.objects.create(customer=customer, total=total)
            publish(connection, customer, "order.placed", {"id": order.id, "total": str(total)})
            Credit.objects.filter(customer=customer).update(available=F("available") - total)
    except IntegrityError:
        return JsonResponse({"error": "the credit is too low"}, status=409)
    return JsonResponse({"id": order.id}, status=201)


def log_position(request: HttpRequest) -> HttpResponse:
    return HttpResponse(position(connection, request.GET["customer"]))


def inbox(request: HttpRequest) -> HttpResponse:
    """One pass over the inbox. In a real application a worker does this whenever it is notified."""
    with transaction.atomic():
        messages = take(connection)
        for message in messages:
            publish(connection, message.user_id, "echo", {"message": message.id, "data": message.data})
    return JsonResponse({"taken": len(messages)})


def token(request: HttpRequest) -> HttpResponse:
    keys = TokenKeys.from_directory(os.environ["TOKEN_KEYS"])  # the mounted Secret of the user
    return HttpResponse(sign(keys, request.GET["customer"]), content_type="text/plain")


urlpatterns = [
    path("orders", orders),
    path("position", log_position),
    path("inbox", inbox),
    path("token", token),
]

if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[1]), WSGIHandler()).serve_forever()

